"""Exact match on the number after ``####``, compared by value."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_MARKED = re.compile(r"####\s*(?:[$€£]\s*)?([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))")


def parse_answer(text: str) -> str | None:
    """The last number after ``####``, thousands commas removed; None where there is none."""
    found = _MARKED.findall(text)
    return found[-1].replace(",", "").removeprefix("+") if found else None


def is_correct(completion: str, gold: str) -> bool | None:
    """Whether the completion's answer equals the gold's by value; None if it gives no answer.

    ``1,234``, ``1234`` and ``1234.0`` are equal. No answer is never correct.

    Raises:
        ValueError: if the gold text itself holds no answer.
    """
    expected, given = parse_answer(gold), parse_answer(completion)
    if expected is None:
        raise ValueError(f"gold answer without '#### NUMBER': {gold[-80:]!r}")
    return None if given is None else Decimal(given) == Decimal(expected)


def wilson_interval(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Binomial interval for a proportion (Wilson, 1927), 95 % by default; NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # The exact ends at 0 and n correct; rounding must not leave the observed share outside.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)
