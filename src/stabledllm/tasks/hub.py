"""Rows of a data set on the hub, or of a Parquet file, through ``datasets``, which is imported only here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.offline import how_to_reach


def hub_rows(task: str, repository: str, split: str, *, config: str | None = None) -> Iterator[tuple[str, dict]]:
    """The ``(origin, row)`` of a hub's split, one at a time, in order; ``origin`` is ``repository split row i``.

    Raises:
        UserError: ``datasets`` is not installed, or the hub cannot be read (offline, no such data set).
    """
    what = f"{repository} {split}"
    unreadable = (
        f"data '{task}': expected {task}:PATH with local files, or {what} in the hub's cache, found neither, and "
        f"{how_to_reach('the hub could not be read')}"
    )
    return _rows(task, what, unreadable, repository, split=split, **({"name": config} if config else {}))


def named_rows(
    repository: str, split: str, subset: str | None = None, *, streaming: bool = False, skip: int = 0
) -> tuple[str, list[Path], Iterator[dict]]:
    """Any data set's ``(name for messages, files it is read from, rows)``.

    Args:
        streaming: read the rows from the hub as they come, without a copy here (and so from no files). skip: number of
            first rows to leave out, under ``streaming``.

    Raises:
        UserError: ``datasets`` is not installed, or the data set has no such split or cannot be read.
    """
    what = f"{repository} {split}"
    unreadable = (
        f"data 'hub:{repository}': expected its split '{split}' (data.split) in the hub's cache, or a hub to load it "
        f"from (HF_HUB_OFFLINE=0 allows a download), found neither"
    )
    lacking = f"data 'hub:{repository}': expected the package 'datasets' to read it"
    more = ({"name": subset} if subset else {}) | ({"streaming": True} if streaming else {})
    rows = _loaded(lacking, unreadable, repository, split=split, **more)
    rows = rows.skip(skip) if skip else rows
    files = [Path(file["filename"]) for file in getattr(rows, "cache_files", [])]
    return what, files, (dict(row) for row in rows)


def parquet_rows(task: str, path: Path) -> Iterator[tuple[str, dict]]:
    """The same as :func:`hub_rows`, for a local Parquet file."""
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found nothing.")
    unreadable = f"{path}: expected a Parquet file, found something broken"
    return _rows(task, str(path), unreadable, "parquet", data_files=str(path), split="train")


def _rows(task: str, what: str, unreadable: str, *args, **kwargs) -> Iterator[tuple[str, dict]]:
    lacking = f"data '{task}': expected {task}:PATH with local JSON lines, or the package 'datasets' to read {what}"
    for number, row in enumerate(_loaded(lacking, unreadable, *args, **kwargs)):
        yield f"{what} row {number}", dict(row)


def _loaded(lacking: str, unreadable: str, *args, **kwargs):
    """The data set; the arguments begin the errors where the package or the data are not there."""
    try:
        import datasets
    except ImportError:
        found = "found neither" if ", or " in lacking else "found none"
        raise UserError(f"{lacking}, {found}; pip install 'stabledllm[hub]'.") from None
    try:
        return datasets.load_dataset(*args, **kwargs, **_no_foreign_code(datasets))
    except Exception as error:  # offline, no such repository, a broken cache: each has its own type, by library
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(f"{unreadable} ({reason}).") from None


def _no_foreign_code(datasets) -> dict:
    """Arguments that keep ``load_dataset`` from running a data set's script or asking to; none since version 4."""
    major = str(getattr(datasets, "__version__", "4")).partition(".")[0]
    return {"trust_remote_code": False} if major.isdigit() and int(major) < 4 else {}
