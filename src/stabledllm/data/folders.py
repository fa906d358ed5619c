"""Folders of data files, and those whose files are named after splits, as the hub's data sets are stored."""

from __future__ import annotations

import re
from pathlib import Path

from stabledllm.data.containers import ENDINGS
from stabledllm.errors import UserError
from stabledllm.tasks.text_files import files_below

_SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev|eval", "test": "test|testing"}
_NAMES = {
    split: re.compile(rf"(?:^|[/._\-])(?:{names})(?=[/._\-]|\d|$)", re.IGNORECASE) for split, names in _SPLITS.items()
}


def data_files(folder: Path) -> list[Path]:
    """The files with a known ending in a folder and those below it, sorted; hidden ones and their folders left out."""
    files = files_below(folder, ENDINGS)
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def by_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of each split (``train-00000-of-00002.parquet``, ``test/part.jsonl``); empty where none is named so.

    Only a name that says test or validation makes a folder one of splits: a lone ``train.jsonl`` is just a file.

    Raises:
        UserError: a file of no split beside those of splits.
    """
    named = {file: _split_of(file.relative_to(folder).as_posix()) for file in files}
    if not {"test", "validation"} & set(named.values()):
        return {}
    if alone := next((file for file, split in named.items() if split is None), None):
        raise UserError(
            f"{alone}: expected every file of a folder with splits to be named after train, validation or test, "
            f"found another name."
        )
    return {split: [file for file in files if named[file] == split] for split in _SPLITS if split in named.values()}


def splits_in(path: Path) -> tuple[str, ...]:
    """The splits that a folder's files are named after; none for a file, or a folder without such names."""
    return tuple(by_splits(path, data_files(path))) if path.is_dir() else ()


def _split_of(name: str) -> str | None:
    """The split that a path names: the last one in it, so that the file's own name decides."""
    found = [(match.start(), split) for split, names in _NAMES.items() for match in names.finditer(name)]
    return max(found)[1] if found else None
