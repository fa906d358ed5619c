"""A look at data before anything is loaded: whether they are there, and whether their rows can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stabledllm.config.settings import DataSettings
from stabledllm.data.containers import ending_of
from stabledllm.data.formats import FORMATS, TEXT, FormatOptions, examples_of
from stabledllm.data.kinds import FILE, HUB, LINES, is_own, kind_of, several_meant
from stabledllm.data.reading import Files, Reading
from stabledllm.errors import UserError
from stabledllm.images.kinds import IMAGE_KINDS
from stabledllm.runtime.nearby import nearby
from stabledllm.tasks.registry import MADE, TASKS
from stabledllm.tasks.task import TaskOptions

_ASKS = ("question", "prompt", "instruction", "query", "input")
_UNPACKED = (".jsonl", ".ndjson", ".json", ".csv")
_WITHOUT_PATH = (HUB, "scenes", "text-to-image-2m")
"""Kinds that need no file here."""
_MOST_OF_ROWS = 1 << 20
"""Bytes of own rows up to which all of them are looked at, which takes a fifth of a second; of more the first."""
_MOST_OF_TASK = 1 << 20
"""Bytes beyond which a task's file, which is read as a whole, is left to whoever uses it."""
_MOST_JSON = 1 << 24
"""Bytes beyond which a ``.json`` is left to whoever uses it: its first row is known when all of it is read."""


def check_data(spec: str, split: str, settings: DataSettings) -> int | None:
    """Refuse data that are not there, or own data with a row that is in no format that can be read.

    Returns:
        the number of own rows where all of them were looked at; None where that is not known, as with plain text.

    Of large files the first row alone is looked at, and the others are read where they are used; so are the rows of
    the tasks and of the hub.

    Args:
        split: what the rows are for: train, validation or test. settings: their format and columns.

    Raises:
        UserError: names the file and the row, and the format, the option or the file that may be meant.
    """
    kind, where = kind_of(spec)
    if kind in MADE:
        MADE[kind].check(where or None)
        return None
    if kind == "scenes" and where:
        from stabledllm.images.scenes import most_objects  # brings NumPy, which names alone do not need

        most_objects(where)
    _check_is_there(spec, kind, where)
    if is_own(spec) and kind != HUB:
        return _read(Path(where).expanduser(), kind, split, settings)
    if kind in TASKS and where and _is_small(Path(where).expanduser()):
        TASKS[kind].load(where, split, TaskOptions(rows=1))
    return None


def _check_is_there(spec: str, kind: str, where: str) -> None:
    if kind == HUB and not where.strip(":/"):
        raise UserError(f"data '{spec}': expected {HUB}:OWNER/NAME, found no name.")
    if not where and (kind in (LINES, *FORMATS) or (kind in IMAGE_KINDS and kind not in _WITHOUT_PATH)):
        raise UserError(f"data '{spec}': expected {kind}:PATH with a local file, found no path.")
    path = Path(where).expanduser()
    if where and kind not in (HUB, "scenes") and not path.exists():
        near = several_meant(where) or nearby(path)
        if kind == FILE and not near and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec) and not ending_of(spec):
            near = f"; a data set of the hub is hub:{spec}"
        raise UserError(f"data '{spec}': expected a file or folder, found nothing at '{path}'{near}.")


def _read(path: Path, kind: str, split: str, settings: DataSettings) -> int | None:
    named = kind if kind in FORMATS else settings.format
    options = FormatOptions(named, settings.columns or {}, settings.every_turn, tuple(settings.text_fields))
    if kind == TEXT and not ending_of(path):  # plain text, or a folder of it
        return None
    files, joined = Files(path, as_lines=kind != FILE, split=split), False
    if files.paths and not _is_large_json(files.paths[0]):
        origin, record = next(files.rows())
        form, _ = examples_of(record, str(origin), options)
        joined = form.name == TEXT
        if form.name == TEXT and named is None:
            _refuse_question_beside_text(record, str(origin))
    if settings.train_rows is None and not settings.streaming and _is_soon_read(files.paths):
        rows = sum(1 for _ in Reading(files, options))  # a row that cannot be read is refused
        return None if joined else rows
    return None


def _refuse_question_beside_text(record: dict, origin: str) -> None:
    """Refuse a row of ``text`` beside a question, of which the text alone would be trained on as a document."""
    asks = next((key for key in _ASKS if key in record), None)
    if asks:
        raise UserError(
            f"{origin}: expected an answer beside '{asks}', found 'text', which is a whole document; write "
            f'"data.columns={{prompt: {asks}, completion: text}}" if it is the answer, or data.format={TEXT} to '
            f"train on it alone."
        )


def _is_soon_read(paths: Sequence[Path]) -> bool:
    """Whether all rows of files are read within a moment: small ones that are not packed."""
    whole = all(ending_of(path) in _UNPACKED for path in paths)
    return whole and sum(path.stat().st_size for path in paths) <= _MOST_OF_ROWS


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < _MOST_OF_TASK


def _is_large_json(path: Path) -> bool:
    ending = ending_of(path)
    return ending.startswith(".json") and not ending.startswith(".jsonl") and path.stat().st_size > _MOST_JSON
