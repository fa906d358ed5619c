"""The rows of a ``.json``: a list of objects, ``{"data": [...]}``, or JSON lines under that name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from stabledllm.errors import UserError
from stabledllm.tasks.files import DECODER, as_object, parse_object, parsed
from stabledllm.tasks.text_files import decoded

_SPACE = re.compile(r"[ \t\n\r]*")
_EXPECTED = 'expected a list of objects, {"data": [...]} or JSON lines'


def json_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, bool, dict]]:
    """``(index, False, object)`` of each row of a list, or ``(line, True, object)`` of each of JSON lines.

    The text of the file is whole in memory, its objects are not.

    Raises:
        UserError: broken JSON, or anything but those three.
    """
    text = decoded(file.read(), name)
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _list_rows(text, start, name)
    elif text[start : start + 1] == "{":
        yield from _object_rows(text, start, name)
    elif start < len(text):
        raise UserError(f"{name}: {_EXPECTED}, found a file that begins with {text[start : start + 10]!r}.")


def _object_rows(text: str, start: int, name: str) -> Iterator[tuple[int, bool, dict]]:
    first, end = _value(text, start, name)
    if "data" in first and isinstance(first["data"], list) and _skip(text, end) == len(text):
        for index, record in enumerate(first["data"]):
            yield index, False, as_object(record, f"{name} row {index}")
        return
    if "\n" in text[start:end]:
        raise UserError(f"{name}: {_EXPECTED}, found one object with keys {sorted(first)}.")
    del first
    place, number = 0, 0
    while place < len(text):
        end = text.find("\n", place)
        end, number = len(text) if end < 0 else end, number + 1
        if (line := text[place:end].removesuffix("\r")).strip():
            yield number, True, parse_object(line, f"{name}:{number}")
        place = end + 1


def _list_rows(text: str, start: int, name: str) -> Iterator[tuple[int, bool, dict]]:
    """The objects of the list that begins at ``start`` and with which the file ends."""
    place, index = _skip(text, start + 1), 0
    if text[place : place + 1] == "]":
        index, place = -1, place + 1
    while index >= 0:
        value, place = _value(text, place, f"{name} row {index}")
        yield index, False, value
        place = _skip(text, place)
        mark, place, index = text[place : place + 1], _skip(text, place + 1), index + 1
        if mark == "]":
            break
        if mark != ",":
            found = f"{mark!r}" if mark else "the end of the file"
            raise UserError(f"{name} row {index - 1}: expected ',' or ']' after it, found {found}.")
    if _skip(text, place) < len(text):
        raise UserError(f"{name}: expected nothing after the list, found {text[place : place + 10]!r}.")


def _value(text: str, start: int, origin: str) -> tuple[dict, int]:
    """The object that begins at a place of the text, and where it ends."""
    value, end = parsed(DECODER.raw_decode, text, start, origin=origin)
    return as_object(value, origin), end


def _skip(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()
