"""Reading numbers in text and comparing their values: ``1,234`` = ``1234.0`` = ``1.234e3`` and ``1/2`` = ``0.5``.

A number is always read as a whole: separators, decimals, exponent, fraction and sign belong to it.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_SEPARATOR = r"(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])(?=\d)"
_PLAIN = rf"(?:\d+(?:{_SEPARATOR}\d+)*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?"
_SIGN = r"[-+\u2212]"
_CURRENCY = r"(?:\\?\$|[€£¥₹])"
NUMBER = (
    rf"(?P<sign>{_SIGN}?)\s?(?:{_CURRENCY}\s*)?(?P<inner>{_SIGN}?)"
    rf"(?P<digits>(?:\d+\s+\d+|{_PLAIN})/\d+(?![\d.,]*/)|{_PLAIN})"
)
"""Sign, currency and digits, in this order or the sign after the currency; what follows (units, %) is left out."""

_NUMBER = re.compile(NUMBER)
_LONGEST = 1000
"""Most digits, and highest power of ten, of numbers whose value is computed; no data set has longer ones."""


def written(match: re.Match) -> str:
    """The normal form of a match of :data:`NUMBER`: sign and digits without separators."""
    minus = (match["sign"] + match["inner"]).replace("\u2212", "-").count("-") % 2
    digits = re.sub(_SEPARATOR, "", match["digits"])
    return ("-" if minus else "") + re.sub(r"\s+", " ", digits)


def last_number(text: str) -> str | None:
    """The last number of a text in normal form, or None. A minus right after a digit, letter or bracket is no sign."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    before = text[: last.start()].rstrip(" ")[-1:]
    number = written(last)
    return number.removeprefix("-") if last["sign"] and (before.isalnum() or before in (")", "]", "%")) else number


def value(number: str) -> Fraction | None:
    """The exact value of a number in normal form; None for another text, for x/0, and for very many digits."""
    if len(number) > _LONGEST:
        return None
    sign, digits = (-1, number[1:]) if number.startswith("-") else (1, number)
    whole, _, part = digits.rpartition(" ")
    top, _, bottom = part.partition("/")
    try:
        numbers = [Decimal(x) for x in (whole or "0", top, bottom or "1")]
    except InvalidOperation:
        return None
    if any(not x.is_finite() or abs(x.adjusted()) > _LONGEST for x in numbers) or not numbers[2]:
        return None
    added, top_value, bottom_value = (Fraction(x) for x in numbers)
    return sign * (added + top_value / bottom_value)


def same(a: str, b: str) -> bool:
    """Whether two numbers in normal form are equal by value, or letter by letter if a value cannot be computed."""
    x, y = value(a), value(b)
    return a == b if x is None or y is None else x == y
