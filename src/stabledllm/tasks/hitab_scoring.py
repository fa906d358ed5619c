"""Scoring of HiTab's answers as in the data set's own evaluation: numbers to 1e-5, texts in lower case, ordered lists.

The official rule (``hmt_score`` of the HiTab repository): a text is a number if it is one without its thousands commas,
a closing ``%`` or ``)`` and an opening ``(``; other texts are compared without diacritics, kinds of quotes and dashes,
footnote marks, closing parentheses and case; a list of one is its element.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks.hitab_answers import json_list, plain_value, readings
from stabledllm.tasks.task import Scored

TOLERANCE = 1e-5
SEPARATOR = " | "
"""Separates the values of a list, as HiTab's answers themselves contain commas and "and"."""
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_QUOTES = {"[\u2018\u2019\u00b4`]": "'", "[\u201c\u201d]": '"'}
_MARKS = re.compile(r"(?:(?<=.)\[[^\]]*\]|^\[\d+\]|[\u2022\u2666\u2020\u2021*#+])+$")
_DETAILS = re.compile(r"(?<=.)(?: \([^)]*\))+$")
_QUOTED = re.compile(r'"([^"]*)"')
_UNIT = re.compile(r"[^\d,.eE+()-]*([-+]?[\d,]*\.?\d+)[^\d]*")


def score_answer(completion: str, gold: Any, *, flexible: bool = False) -> Scored:
    """Score a completion by the official comparison.

    Strict: the answer stands behind the last ``Answer:`` of the completion, in one of the forms of
    :func:`~stabledllm.tasks.hitab_answers.readings`.

    Flexible: without ``Answer:`` the last lines are the answer, lines before a list's items are passed over, and
    currency signs and units beside a number are ignored.

    Args:
        gold: a number, a text, or a list of them (or its JSON).

    Raises:
        UserError: a gold without an answer.
    """
    expected = gold_values(gold)
    ways = readings(completion, len(expected), flexible=flexible)
    if not ways:
        return Scored(None, None)
    right = next((way for way in ways if _same(way, expected, flexible)), None)
    parsed = right or ways[0]
    return Scored(parsed[0] if len(parsed) == 1 else parsed, right is not None)


def gold_values(gold: Any) -> list[float | str]:
    """The values of a gold answer.

    Raises:
        UserError: no value, or one that is neither a number nor a text.
    """
    if isinstance(gold, str):
        gold = json_list(gold) or [gold]
    values = gold if isinstance(gold, list) else [gold]
    usable = [v for v in values if isinstance(v, str | int | float) and not isinstance(v, bool) and str(v).strip()]
    if not values or len(usable) < len(values):
        raise UserError(f"expected a HiTab answer (numbers or texts), found {gold!r}.")
    return [_comparable(v) for v in usable]


def written(values: Any) -> str:
    """A gold answer as text for a response: whole numbers without decimals, values separated by ``|``."""
    return SEPARATOR.join(_written(v) for v in (values if isinstance(values, list) else [values]))


def _written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).replace("|", "/")


def _same(parts: list[str], expected: list[float | str], flexible: bool) -> bool:
    if len(parts) != len(expected):
        return False
    pairs = list(zip(parts, expected, strict=True))
    # A text is read as a number only where one is expected: "1,000 and above" is the name of a row.
    bare = [_bare(p) if flexible and isinstance(e, float) else p for p, e in pairs]
    return all(_equal(_comparable(p), e) for p, (_, e) in zip(bare, pairs, strict=True))


def _bare(part: str) -> str:
    """The number in a text that holds one number with a unit or currency; otherwise the text."""
    part = plain_value(part).rstrip(".")
    match = _UNIT.fullmatch(part)
    return match[1] if match and not isinstance(_comparable(part), float) else part


def _equal(given: float | str, expected: float | str) -> bool:
    if isinstance(given, float) and isinstance(expected, float):
        return math.fabs(given - expected) < TOLERANCE
    return isinstance(given, str) and isinstance(expected, str) and given == expected


def _comparable(value: Any) -> float | str:
    """The normal form of one value by the official rule."""
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    text = value.strip().lower()
    bare = text[1:] if text[:1] == "(" else text
    bare = bare[:-1] if bare[-1:] in ("%", ")") else bare
    try:
        number = float(bare.replace(",", ""))
    except ValueError:
        return _normal(text)
    return number if math.isfinite(number) else _normal(text)  # "nan" and "infinity" are words here


def _normal(text: str) -> str:
    """The normal form of a text in WikiTableQuestions, which HiTab's evaluation uses too."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    for pattern, plain in _QUOTES.items():
        text = re.sub(pattern, plain, text)
    text = _DASHES.sub("-", text)
    while True:
        before = text
        text = _DETAILS.sub("", _MARKS.sub("", text.strip()).strip()).strip()
        if quoted := _QUOTED.fullmatch(text):
            text = quoted[1]
        if text == before:
            break
    return " ".join(text.removesuffix(".").split()).lower()
