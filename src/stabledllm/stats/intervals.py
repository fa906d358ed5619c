"""95 % intervals of variances and other quantities that cannot be negative, of sums and of ratios.

Student's interval around a variance that was estimated from few draws covers the truth far less often than 95 %: a
sample that misses the largest values has too small a variance and too small an error at once. The coverage of all
these intervals is measured in ``tests/statistical``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from stabledllm.stats.estimate import Estimate, student

if TYPE_CHECKING:  # for commands that need no torch
    from torch import Tensor

Ends = tuple[float, float]
"""The lower and the upper end of an interval."""
UNKNOWN: Ends = (math.nan, math.nan)
_LEAST_FREEDOM = 0.5


def of_positive(value: float, stderr: float, freedom: float) -> Ends:
    """The interval of a mean of positive values: Student's on the scale of logarithms, which allows for their skew.

    >>> [round(end, 2) for end in of_positive(2.0, 0.5, 9)]
    [1.14, 3.52]
    """
    if not value > 0 or not math.isfinite(stderr):
        return UNKNOWN
    factor = math.exp(min(student(freedom) * stderr / value, 50.0))
    return value / factor, value * factor


def of_variance(value: float, stderr: float, freedom: float) -> Ends:
    """The chi-square interval of a variance, with the degrees of freedom that its error implies, at most ``freedom``.

    It is unknown below half a degree of freedom, where the upper end would be a million times the estimate because a
    single draw makes up nearly all of it.

    >>> [round(end, 2) for end in of_variance(1.0, 0.2, 99)]
    [0.7, 1.55]
    """
    from scipy import special  # here, as importing the package loads torch only; scipy.stats would take a second

    if not value > 0 or not math.isfinite(stderr) or freedom <= 0:
        return UNKNOWN
    nu = min(2 * (value / stderr) ** 2, freedom) if stderr else freedom
    if nu < _LEAST_FREEDOM:
        return UNKNOWN
    return tuple(value * nu / float(2 * special.gammaincinv(nu / 2, q)) for q in (0.975, 0.025))


def tail_of(squares: Tensor, draws: float, averaged: float = 1.0) -> float:
    """The excess kurtosis to allow for in a law of which ``draws`` independent draws showed these squared deviations.

    A sample without the largest values looks tame, and n draws cannot show a kurtosis above n: what is seen is
    corrected for n and doubled; of up to 256 draws it is taken to be no less than 6, an exponential law's, and of more
    by and by no less than they show. For how many laws intervals then hold: ``studies/coverage/README.md``.

    Args:
        averaged: the number of values of such a law that a square is the mean of, as with vectors.

    >>> import torch
    >>> tail_of(torch.ones(16), 16)
    6.0
    """
    kurtosis = float((squares**2).mean() / squares.mean() ** 2)
    seen = (kurtosis - 1) / max(1 - kurtosis / draws, 0.02) - 2 / averaged
    return 6 / averaged * min(1.0, 256 / draws) + 2 * max(seen, 0.0)


def of_sum(parts: Sequence[tuple[float, Ends]]) -> Ends:
    """The interval of a sum of independent estimates ``(value, ends)``, each side computed by itself.

    Source: Zou and Donner (2008).

    >>> of_sum([(1.0, (0.5, 1.5)), (2.0, (2.0, 2.0))])
    (2.5, 3.5)
    """
    total = sum(value for value, _ in parts)
    low = math.hypot(*(value - ends[0] for value, ends in parts))
    high = math.hypot(*(ends[1] - value for value, ends in parts))
    return total - low, total + high


def widest(*intervals: Ends) -> Ends:
    """The smallest interval that holds all those that are known.

    >>> widest((0.5, 2.0), UNKNOWN, (1.0, 3.0))
    (0.5, 3.0)
    """
    known = [ends for ends in intervals if not math.isnan(sum(ends))]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else UNKNOWN


def scaled(part: tuple[float, Ends], by: float) -> tuple[float, Ends]:
    """``by`` times an estimate ``(value, ends)``; a negative factor swaps the ends.

    >>> scaled((1.0, (0.5, 2.0)), -2.0)
    (-2.0, (-4.0, -1.0))
    """
    value, (low, high) = part
    return by * value, (by * low, by * high) if by >= 0 else (by * high, by * low)


def with_ends(estimate: Estimate) -> tuple[float, Ends]:
    """The pair ``(value, ends)`` that :func:`of_sum` and :func:`scaled` take.

    >>> with_ends(Estimate(value=2.0, stderr=0.5, n=9, ends=(1.0, 4.0)))
    (2.0, (1.0, 4.0))
    """
    return estimate.value, estimate.interval()


_MOST = 1e3
"""The largest upper end that is searched for; beyond it the interval is unknown."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of two quantities that cannot be negative, with its 95 % interval; NaN where it is not known.

    >>> Ratio(0.5, 0.3, 0.7).below_one
    True
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether it has both a value and an interval."""
        return all(math.isfinite(x) for x in (self.value, self.ci_low, self.ci_high))

    @property
    def below_one(self) -> bool | None:
        """True if the whole interval lies below 1, False if above it, None if it holds 1 or is not known."""
        return True if self.ci_high < 1 else False if self.ci_low > 1 else None

    def as_dict(self) -> dict:
        """The JSON form."""
        return asdict(self)


def of_ratio(value: float, ends_of_difference: Callable[[float], Ends]) -> Ratio:
    """The ratio ``top / bottom`` of two quantities that cannot be negative, with Fieller's interval.

    The interval holds every r at which ``top - r bottom`` may be 0. It is unknown where it has no upper end, as where
    ``bottom`` may be 0. A negative estimate is reported as 0, the nearest possible value.

    Args:
        value: the estimate of the ratio.
        ends_of_difference: the interval of ``top - r bottom`` for a given r.

    >>> ratio = of_ratio(0.5, lambda r: (1 - 2 * r - 0.4, 1 - 2 * r + 0.4))
    >>> {name: round(end, 2) for name, end in ratio.as_dict().items()}
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
    """The point between ``low``, where ``f`` is positive, and ``high``, where it is not, at which it changes sign."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def of_estimated_ratio(estimate: Estimate) -> Ratio:
    """The ratio of two positive quantities that was estimated as one number, for example by a jackknife.

    Its interval covers both Student's and the one on the scale of logarithms, cut off at 0.

    >>> ratio = of_estimated_ratio(Estimate(value=2.0, stderr=0.5, n=10))
    >>> {name: round(end, 2) for name, end in ratio.as_dict().items()}
    {'value': 2.0, 'ci_low': 0.87, 'ci_high': 3.52}
    """
    if not math.isfinite(estimate.value):
        return Ratio(math.nan)
    value = max(estimate.value, 0.0)
    if not (math.isfinite(estimate.stderr) and estimate.value > 0):
        return Ratio(value)
    low, high = widest(estimate.interval(), of_positive(estimate.value, estimate.stderr, estimate.n - 1))
    return Ratio(value, max(low, 0.0), high)
