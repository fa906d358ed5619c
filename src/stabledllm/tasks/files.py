"""Reading JSON lines, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from stabledllm.errors import UserError
from stabledllm.tasks.text_files import lines, open_binary

_HALF = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path, *, halves: bool = False) -> Iterator[tuple[str, dict]]:
    """Read ``(origin, object)`` of each non-blank line; ``origin`` is ``file:line``. The file is never whole in memory.

    Args:
        halves: accept texts that hold half of a surrogate pair, which JSON can write and UTF-8 cannot.

    Raises:
        UserError: missing or empty file, or a line that is not a JSON object with plain keys and values.
    """
    return ((f"{path}:{number}", record) for _, number, record in read_places(path, halves=halves))


def read_places(path: Path, *, halves: bool = False) -> Iterator[tuple[int, int, dict]]:
    """The same as :func:`read_jsonl`, but with ``(offset, line number, object)`` of each line."""
    any_row = False
    with open_binary(path) as file:
        for offset, number, line in lines(file, str(path)):
            if line.strip():
                any_row = True
                yield offset, number, parse_object(line, f"{path}:{number}", halves=halves)
    if not any_row:
        raise UserError(f"{path}: expected at least one row, found an empty file.")


def split_file(folder: Path, split: str) -> Path:
    """The path of ``SPLIT.jsonl`` in a folder, whatever the case of its name.

    Raises:
        UserError: there is no such file.
    """
    path = folder / f"{split}.jsonl"
    names = sorted(file.name for file in folder.iterdir())
    alike = [name for name in names if name.lower() == path.name.lower()]
    path = folder / (path.name if path.name in alike or not alike else alike[0])
    if not path.is_file():
        raise UserError(f"{folder}: expected {path.name} in it, found {', '.join(names[:8]) or 'nothing'}.")
    return path


def parse_object(line: str, origin: str, *, halves: bool = False) -> dict:
    """The JSON object that a line holds.

    Raises:
        UserError: no JSON object, a key that is twice in an object, NaN or infinity, or half of a surrogate pair.
    """
    return as_object(parsed((_HALVES_TOO if halves else DECODER).decode, line, origin=origin), origin)


def parsed(read: Callable[..., Any], *args: Any, origin: str, what: str = "a JSON object") -> Any:
    """What a method of :data:`DECODER` reads, with its refusals in one sentence.

    Args:
        read: ``decode`` for a whole text, ``raw_decode`` for a value within one. what: what was expected, in errors.

    Raises:
        UserError: broken JSON, or one of the refusals of :func:`parse_object`.
    """
    try:
        return read(*args)
    except UnfitJson as error:
        raise UserError(f"{origin}: {error}") from None
    except json.JSONDecodeError as error:
        where = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{origin}: expected {what}, found broken JSON ({error.msg}{where}).") from None
    except RecursionError:
        raise UserError(f"{origin}: expected {what}, found one nested too deeply to read.") from None
    except ValueError:
        raise UserError(f"{origin}: expected {what}, found a number too long to read.") from None


def as_object(value: Any, origin: str) -> dict:
    """The value, if it is an object.

    Raises:
        UserError: another kind of value.
    """
    if not isinstance(value, dict):
        raise UserError(f"{origin}: expected a JSON object, found {type(value).__name__}.")
    return value


class UnfitJson(Exception):
    """Raised for JSON that can be parsed but is no valid row; its message lacks the origin."""


def _checked(pairs: list[tuple[str, Any]], *, halves: bool = False) -> dict:
    """Make an object of its pairs and check them. Objects inside it were checked before."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UnfitJson(f"expected every key once, found {twice!r} twice.")
    for key, value in pairs:
        _check_value(value, key, halves)
        if not halves and _HALF.search(key):
            raise UnfitJson("expected Unicode text for keys, found half of a surrogate pair.")
    return record


def _checked_but_halves(pairs: list[tuple[str, Any]]) -> dict:
    return _checked(pairs, halves=True)


def _check_value(value: Any, key: str, halves: bool) -> None:
    if isinstance(value, str):
        if not halves and not value.isascii() and _HALF.search(value):
            raise UnfitJson(f"expected Unicode text under '{key}', found half of a surrogate pair.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitJson(f"expected finite numbers, found one beyond every float under '{key}'.")
    elif isinstance(value, list) and set(map(type, value)) - {int, bool, dict, type(None)}:
        for each in value:
            _check_value(each, key, halves)


def _refuse_constant(name: str) -> NoReturn:
    raise UnfitJson(f"expected finite numbers, found {name.lower()}.")


def text_field(record: dict, key: str, origin: str) -> str:
    """Read a field that must be a non-empty string.

    Raises:
        UserError: if it is missing, not a string, blank, or not encodable as UTF-8.
    """
    value = record.get(key)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{origin}: expected text under '{key}', found {found}.")
    if not value.strip():
        raise UserError(f"{origin}: expected a non-empty '{key}', found an empty one.")
    if _HALF.search(value):
        raise UserError(f"{origin}: expected Unicode text under '{key}', found half of a surrogate pair.")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_checked, parse_constant=_refuse_constant)
"""Reads JSON under the rules of :func:`parse_object`, see :func:`parsed`; raises :class:`UnfitJson`."""
_HALVES_TOO = json.JSONDecoder(object_pairs_hook=_checked_but_halves, parse_constant=_refuse_constant)
