"""Reading JSON lines, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stabledllm.errors import UserError


def read_jsonl(path: Path) -> Iterator[tuple[str, dict]]:
    """``(origin, object)`` per non-blank line; ``origin`` is ``file:line``.

    Raises:
        UserError: missing or empty file, or a line that is not a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}.")
    found = False
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found = True
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8 text, found a byte that is not ({error.reason}).") from None
    if not found:
        raise UserError(f"{path}: expected at least one row, found an empty file.")


def split_file(folder: Path, split: str, extension: str = "jsonl") -> Path:
    """``SPLIT.jsonl`` in a folder.

    Raises:
        UserError: it is not there.
    """
    path = folder / f"{split}.{extension}"
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir())[:8]
        raise UserError(f"{folder}: expected {path.name} in it, found {', '.join(there) or 'nothing'}.")
    return path


def _object(line: str, origin: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: expected a JSON object, found broken JSON ({error.msg}).") from None
    except RecursionError:
        raise UserError(f"{origin}: expected a JSON object, found one nested too deeply to read.") from None
    except ValueError:
        raise UserError(f"{origin}: expected a JSON object, found a number too long to read.") from None
    if not isinstance(record, dict):
        raise UserError(f"{origin}: expected a JSON object, found {type(record).__name__}.")
    return record


def text_field(record: dict, key: str, origin: str) -> str:
    """A non-empty string field.

    Raises:
        UserError: if it is missing, not a string, blank, or not encodable as UTF-8.
    """
    value = record.get(key)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{origin}: expected text under '{key}', found {found}.")
    if not value.strip():
        raise UserError(f"{origin}: expected a non-empty '{key}', found an empty one.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{origin}: expected Unicode text under '{key}', found half of a surrogate pair.")
    return value
