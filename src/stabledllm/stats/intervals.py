"""95 % intervals of quantities that cannot be negative, of sums and of ratios, from intervals of their parts.

Student's interval around a variance of few draws covers far less than it says: a sample without the largest values has
both too small a variance and too small an error. Coverage of all of these is measured in ``tests/statistical``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from stabledllm.stats.estimate import Estimate, student

Ends = tuple[float, float]
UNKNOWN: Ends = (math.nan, math.nan)
_LEAST_FREEDOM = 0.5


def of_positive(value: float, stderr: float, freedom: float) -> Ends:
    """Of a mean of positive values: Student's on the scale of logarithms, which follows their skew.

    >>> [round(end, 2) for end in of_positive(2.0, 0.5, 9)]
    [1.14, 3.52]
    """
    if not value > 0 or not math.isfinite(stderr):
        return UNKNOWN
    factor = math.exp(min(student(freedom) * stderr / value, 50.0))
    return value / factor, value * factor


def of_variance(value: float, stderr: float, freedom: float) -> Ends:
    """Of a variance: chi-square's with the degrees of freedom that its error speaks for, but at most those given.

    Unknown below half a degree, where the upper end would be a million times the estimate: one draw decides it all.

    >>> [round(end, 2) for end in of_variance(1.0, 0.2, 99)]
    [0.7, 1.55]
    """
    from scipy import stats  # here, as importing the package loads torch only

    if not value > 0 or not math.isfinite(stderr) or freedom <= 0:
        return UNKNOWN
    nu = min(2 * (value / stderr) ** 2, freedom) if stderr else freedom
    if nu < _LEAST_FREEDOM:
        return UNKNOWN
    return tuple(value * nu / float(stats.chi2.ppf(q, nu)) for q in (0.975, 0.025))


def of_sum(parts: Sequence[tuple[float, Ends]]) -> Ends:
    """Of a sum of independent estimates ``(value, ends)`` (Zou and Donner, 2008); a deviation to each side apart.

    >>> of_sum([(1.0, (0.5, 1.5)), (2.0, (2.0, 2.0))])
    (2.5, 3.5)
    """
    total = sum(value for value, _ in parts)
    low = math.hypot(*(value - ends[0] for value, ends in parts))
    high = math.hypot(*(ends[1] - value for value, ends in parts))
    return total - low, total + high


def widest(*found: Ends) -> Ends:
    """From the least low to the greatest high of those that are known."""
    known = [ends for ends in found if not math.isnan(ends[0] + ends[1])]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else UNKNOWN


def negated(part: tuple[float, Ends], by: float = 1.0) -> tuple[float, Ends]:
    """``-by`` times an estimate, by >= 0."""
    value, (low, high) = part
    return -by * value, (-by * high, -by * low)


def scaled(part: tuple[float, Ends], by: float) -> tuple[float, Ends]:
    """``by`` times an estimate, for either sign."""
    value, (low, high) = part
    return (by * value, (by * low, by * high)) if by >= 0 else negated(part, -by)


def with_ends(estimate: Estimate) -> tuple[float, Ends]:
    """An estimate as a part of :func:`of_sum`."""
    return estimate.value, estimate.interval()


_MOST = 1e3
"""Ratios beyond this are no longer looked for: nothing is said then."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of two noises, neither of which can be negative, with its 95 % interval; NaN where it is not known."""

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether it has a value and an interval."""
        return all(math.isfinite(x) for x in (self.value, self.ci_low, self.ci_high))

    @property
    def below_one(self) -> bool | None:
        """Whether it is surely below 1, or surely above it; None where the interval holds 1 or there is none."""
        return True if self.ci_high < 1 else False if self.ci_low > 1 else None

    def as_dict(self) -> dict:
        """JSON form."""
        return asdict(self)


def of_ratio(value: float, ends_of_difference: Callable[[float], Ends]) -> Ratio:
    """The ratio ``top / bottom`` of two noises.

    The interval holds every r at which ``top - r bottom`` may be 0 (Fieller's idea); there is none where it has no
    end, as where the bottom may be 0 itself. An estimate below 0 is given out as 0, the nearest that can be.

    Args:
        ends_of_difference: interval of ``top - r bottom`` for a given r.

    >>> ratio = of_ratio(0.5, lambda r: (1 - 2 * r - 0.4, 1 - 2 * r + 0.4))
    >>> {name: round(end, 2) for name, end in ratio.items()}
    {'value': 0.5, 'ci_low': 0.3, 'ci_high': 0.7}
    """
    if not math.isfinite(value):
        return Ratio(math.nan)
    start = max(value, 0.0)
    if math.isnan(sum(ends_of_difference(start))):
        return Ratio(start)
    low = 0.0 if ends_of_difference(0.0)[0] <= 0 else _root(lambda r: ends_of_difference(r)[0], 0.0, start)
    high = max(1.0, 2 * start)
    while ends_of_difference(high)[1] > 0:
        high *= 2
        if high > _MOST:
            return Ratio(start)
    return Ratio(start, low, _root(lambda r: ends_of_difference(r)[1], start, high))


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive at ``low`` and not at ``high`` changes sign."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def of_estimated_ratio(estimate: Estimate) -> Ratio:
    """A ratio of positive quantities that was estimated as a whole, as by a jackknife.

    The wider of Student's interval and that on the scale of logarithms, and nothing below 0.
    """
    if not math.isfinite(estimate.value):
        return Ratio(math.nan)
    value = max(estimate.value, 0.0)
    if not (math.isfinite(estimate.stderr) and estimate.value > 0):
        return Ratio(value)
    low, high = widest(estimate.interval(), of_positive(estimate.value, estimate.stderr, estimate.n - 1))
    return Ratio(value, max(low, 0.0), high)
