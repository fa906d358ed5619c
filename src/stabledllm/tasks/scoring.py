"""Scoring by the number after ``####``, compared by value, and the confidence interval of a share."""

from __future__ import annotations

import math
import re
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks import numbers
from stabledllm.tasks.task import Scored

# Between the marker and the number there may be space, bold or code marks and an opening LaTeX bracket.
_MARKED = re.compile(r"####(?:[\s*_`~≈=]|\\[(\[]|\\boxed\{|\\text\{)*" + numbers.NUMBER)
_BARE = re.compile(r"\s*" + numbers.NUMBER + r"\s*(?:\\?%)?\.?\s*")


def parse_answer(text: str) -> str | None:
    """The last number after ``####`` in normal form (no separators, no plus); None if there is none."""
    last = None
    for last in _MARKED.finditer(text):  # noqa: B007
        pass
    return last and numbers.written(last)


def parse_gold(gold: Any) -> str:
    """The number of a gold answer: the one after ``####``, or the whole answer if it is a number.

    Raises:
        UserError: the answer holds no number.
    """
    text = str(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) else gold
    if isinstance(text, str):
        bare = _BARE.fullmatch(text)
        number = numbers.written(bare) if bare else parse_answer(text)
        if number is not None and numbers.value(number) is not None:
            return number
    raise UserError(f"expected a gold answer '#### NUMBER' or a number, found {_short(gold)}.")


def score_number(completion: str, gold: Any, *, flexible: bool = False) -> Scored:
    """Score a completion by its last number after ``####`` (GSM8K's rule), or if ``flexible`` by its last number.

    Raises:
        UserError: a gold answer without a number.
    """
    expected = parse_gold(gold)
    given = numbers.last_number(completion) if flexible else parse_answer(completion)
    return Scored(given, None if given is None else numbers.same(given, expected))


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927); NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = 1.959963984540054
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At 0 and n correct the ends are exact: rounding must not leave the observed share outside.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"'...{text[-57:]}"
