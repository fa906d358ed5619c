"""Finds the values of an answer to HiTab in a completion, in the forms that models write them.

Values are separated by ``|``. Where several are expected, they may also be a list of JSON or Python, one per line, with
bullets or numbers before them, or separated by ``;``, commas and "and". A form is a way to read the same text; whether
the values are right is for :mod:`stabledllm.tasks.hitab_scoring`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings

_LONGEST = 1000
"""Number of characters of an answer that are read; HiTab's longest answer has a quarter of that."""
_MARKER = re.compile(r"answer\s*:", re.IGNORECASE)
_DECORATION = " \t*_`"
_ITEM = r"[ \t]*(?:(?:[-*+\u2022\u2013]|\d{1,2}[.)])[ \t]+)+"
_BULLET = re.compile(_ITEM)
"""What stands before an item of a list; the table of the prompt writes ``- `` before rows under others too."""
_SEPARATORS = (
    r";",
    r"\u2022",
    r",(?!\d{3}(?:\D|$))",
    r",(?!\d{3}(?:\D|$))(?:\s*and\b)?|\band\b",
)
"""Between values on one line: none of them is a thousands comma."""


def readings(completion: str, count: int, *, flexible: bool = False) -> list[list[str]]:
    """The ways to read a completion's values, plainest first; none where it has no answer.

    Strict: the answer stands behind the last ``Answer:``, on its line or the next that is not empty, and where it is a
    list down to the next empty line. Flexible: without ``Answer:`` the last lines are the answer, and lines before a
    list's items are passed over.

    Args:
        count: number of values expected. Forms other than ``|`` count only where they give that number.
    """
    answer = _after_marker(completion)
    if not answer and flexible:
        return _read(_last_line(completion), _last_paragraph(completion), count, flexible)
    return _read(_first_line(answer), answer, count, flexible)


def json_list(text: str) -> list | None:
    """The numbers and texts of a JSON list; None where the text is none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return _plain(json.loads(text))
    except (ValueError, RecursionError):
        return None


def plain_value(text: str) -> str:
    """The text without blanks and Markdown's decoration around it."""
    return text.strip(_DECORATION)


def _read(line: str, lines: str, count: int, flexible: bool) -> list[list[str]]:
    line, lines = line[:_LONGEST], lines[:_LONGEST]
    if not line:
        return []
    ways = [_split(line, "|")]
    for text in (line, lines):
        values = json_list(plain_value(text)) or _python_list(text)
        if values is not None:
            ways.append([str(value) for value in values])
    bare = _BULLET.sub("", line, count=1)
    if count == 1:
        return [*ways, [plain_value(bare)]] if bare != line else ways
    ways += [_parts(pattern, text) for text in (line, _without_brackets(line)) for pattern in _SEPARATORS]
    ways += [_items(lines, bulleted=False)] + ([_items(lines, bulleted=True)] if flexible else [])
    return [ways[0], *(way for way in ways[1:] if len(way) == count)]


def _after_marker(completion: str) -> str:
    """The text after the last ``Answer:``, up to the next empty line."""
    marks = list(_MARKER.finditer(completion))
    if not marks:
        return ""
    return _paragraphs(completion[marks[-1].end() :].lstrip(_DECORATION + "\n"))[0]


def _first_line(text: str) -> str:
    return plain_value(text.split("\n", 1)[0])


def _last_line(completion: str) -> str:
    lines = [plain_value(line) for line in completion.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _last_paragraph(completion: str) -> str:
    return _paragraphs(completion.strip())[-1]


def _paragraphs(text: str) -> list[str]:
    """The text between empty lines; those between the items of a list separate nothing."""
    return re.split(rf"\n\n(?!{_ITEM})", re.sub(r"\n\s*\n", "\n\n", text))


def _split(text: str, separator: str) -> list[str]:
    return _parts(re.escape(separator), text) or [text.strip()]


def _parts(pattern: str, text: str) -> list[str]:
    return [part for part in map(plain_value, re.split(pattern, text)) if part]


def _items(text: str, *, bulleted: bool) -> list[str]:
    """One value per line, without what stands before and between items; ``bulleted``: of lines with a bullet only."""
    lines = [line for line in text.splitlines() if line.strip() and (not bulleted or _BULLET.match(line))]
    bare = (_BULLET.sub("", line, count=1).strip().rstrip(",;") for line in lines)
    return [item for item in (plain_value(re.sub(r"^and\b", "", line)) for line in bare) if item]


def _without_brackets(line: str) -> str:
    return line[1:-1] if line[:1] == "[" and line[-1:] == "]" else line


def _python_list(text: str) -> list | None:
    """The numbers and texts of a list or tuple as Python writes it, with or without its brackets."""
    text = plain_value(text.strip())
    if text[:1] not in ("[", "(", "'", '"'):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, on escapes in what was no Python
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return _plain(list(value)) if isinstance(value, list | tuple) else None


def _plain(values: object) -> list | None:
    plain = isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values)
    return values if plain else None
