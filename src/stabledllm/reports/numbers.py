"""Writes numbers as text, with as many digits as their error supports; an unknown one is an en dash."""

from __future__ import annotations

import math

from stabledllm.reports.stored import number, stderr, value
from stabledllm.reports.table import NONE

_FAR = 1e3
"""Where an interval's upper end is this many times larger than value and lower end, each gets digits of its own."""


def estimate(est: object, unit: bool = False) -> str:
    """An Estimate as text: ``0.488 ± 0.018``, the error with two digits and the value to the same place.

    ``0.49, 0.31 to 0.82`` where a 95 % interval is stored, since it is not 1.96 errors to either side; ``0.49 ± ?``
    where the error is stored as unknown, since alone it would look exact.
    """
    v, s = value(est), stderr(est)
    tail = f" {est['unit']}" if unit and isinstance(est, dict) and est.get("unit") and not math.isnan(v) else ""
    low, high = (number(est.get(end)) if isinstance(est, dict) else math.nan for end in ("ci_low", "ci_high"))
    if math.isfinite(v + low + high) and low < high:
        if abs(high) > _FAR * max(abs(v), abs(low)):  # no common number of decimals suits all of them
            return f"{plain(v)}, {plain(low)} to {plain(high)}{tail}"
        exponent = _exponent(v, (high - low) / 2)
        scaled = [x / 10.0**exponent for x in (v, low, high)]
        return (f"({with_interval(*scaled)})e{exponent:+03d}" if exponent else with_interval(*scaled)) + tail
    if math.isnan(v) or math.isnan(s) or s <= 0 or math.isinf(v) or math.isinf(s):
        unknown = isinstance(est, dict) and "stderr" in est and math.isnan(s) and math.isfinite(v)
        return plain(v) + (" ± ?" if unknown else "") + tail
    exponent = _exponent(v, s)
    if exponent:
        scale = 10.0**exponent
        places = _places(s / scale)
        return f"({v / scale:.{places}f} ± {s / scale:.{places}f})e{exponent:+03d}{tail}"
    places = _places(s)
    return f"{v:.{places}f} ± {s:.{places}f}{tail}"


def with_error(est: object) -> str:
    """An Estimate as value ± standard error, whatever interval is stored."""
    return estimate({"value": value(est), "stderr": stderr(est)})


def positive(est: object, unit: bool = False) -> str:
    """An Estimate of what cannot be negative, such as a variance or a loss: as :func:`estimate`, with no end below 0.

    An estimate that is not above 0 is shown as ``below X``, X its interval's upper end.
    """
    v, s = value(est), stderr(est)
    low, high = (number(est.get(end)) if isinstance(est, dict) else math.nan for end in ("ci_low", "ci_high"))
    if math.isnan(low + high):
        low, high = v - 1.96 * s, v + 1.96 * s
    if v <= 0:
        tail = f" {est['unit']}" if unit and isinstance(est, dict) and est.get("unit") else ""
        return (f"below {plain(high, 2)}" if high > 0 else NONE if math.isnan(s) and v else "0") + tail
    return estimate(est | {"ci_low": 0.0, "ci_high": high} if low < 0 else est, unit)


def ratio(stored: dict | None) -> str:
    """A stored ratio of what cannot be negative: ``0.63, 0.57 to 0.69``, or ``below 0.69`` for an estimate of 0.

    One whose interval is not known says so, as alone it would look exact.
    """
    v, low, high = (number((stored or {}).get(name)) for name in ("value", "ci_low", "ci_high"))
    if v > 0 and math.isnan(low + high):
        return f"{plain(v)}, no interval"
    if v <= 0:
        return NONE if math.isnan(high) else f"below {plain(high, 2)}"
    return with_interval(v, low, high)


def _exponent(v: float, s: float) -> int:
    """The power of ten to take out of a value and its error; 0 where plain decimals read well."""
    size = max(abs(v), s)
    return 0 if 1e-3 <= size < 1e5 else math.floor(math.log10(size))


def _places(s: float) -> int:
    return min(max(1 - math.floor(math.log10(s)), 0), 8)


def plain(v: object, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, without an exponent where it reads well so."""
    v = number(v)
    if math.isnan(v):
        return NONE
    if math.isinf(v):
        return "∞" if v > 0 else "-∞"
    if v == 0:
        return "0"
    size = math.floor(math.log10(abs(v)))
    if not -4 <= size < 6:
        return f"{v:.{digits - 1}e}"
    return f"{v:.{max(digits - 1 - size, 0)}f}"


def interval(low: object, high: object, digits: int | None = None) -> str:
    """An interval as text, ``0.55 to 0.70``, with both ends to the same decimal place."""
    low, high = number(low), number(high)
    if math.isnan(low) or math.isnan(high):
        return NONE
    places = digits if digits is not None else places_for(low, high)
    return f"{low:.{places}f} to {high:.{places}f}"


def with_interval(v: object, low: object, high: object, sign: bool = False) -> str:
    """A value with its interval, ``0.63, 0.57 to 0.69``, all to the same place; the value alone without an interval."""
    span = interval(low, high)
    if span == NONE:
        return signed(v) if sign else plain(v)
    places = places_for(number(low), number(high))
    if number(v):  # an interval far wider than its value must not round the value to 0
        places = max(places, min(-math.floor(math.log10(abs(number(v)))), 6))
    span = interval(low, high, places)
    return f"{signed(v, places) if sign else fixed(v, places)}, {span}"


def fixed(v: object, places: int) -> str:
    """A number with a given number of decimals."""
    v = number(v)
    return NONE if math.isnan(v) else f"{v:.{places}f}"


def places_for(low: float, high: float) -> int:
    """The number of decimals that shows the width of an interval with two digits."""
    width = abs(high - low) / 2
    return 3 if not math.isfinite(width) or width == 0 else min(max(1 - math.floor(math.log10(width)), 0), 6)


def signed(v: object, digits: int | None = None) -> str:
    """A difference as text with its sign."""
    v = number(v)
    if math.isnan(v):
        return NONE
    text = f"{v:+.{digits}f}" if digits is not None else f"{v:+.3g}"
    return text if text.strip("+-0.") else text.lstrip("+-")


def p_value(p: object) -> str:
    """A p value as text: ``0.03`` or ``< 0.001``."""
    p = number(p)
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def percent(part: float, whole: float) -> str:
    """The share of a positive whole as text: ``55 %``; 0 for an estimate below 0."""
    if not whole > 0 or math.isnan(part):
        return NONE
    return f"{100 * max(part, 0.0) / whole:.0f} %"


def yes_no(v: object) -> str:
    """``yes``, ``no`` or the dash for what is not known."""
    return {True: "yes", False: "no"}.get(v, NONE) if isinstance(v, bool) else NONE


def count(n: object) -> str:
    """A whole number as text with thousands apart: ``12,345``."""
    n = number(n)
    return NONE if math.isnan(n) else f"{n:,.0f}"


def duration(seconds: object) -> str:
    """A time as text: ``41 s``, ``12 min`` or ``3.4 h``."""
    s = number(seconds)
    if math.isnan(s):
        return NONE
    return f"{s:.0f} s" if s < 120 else f"{s / 60:.0f} min" if s < 7200 else f"{s / 3600:.1f} h"
