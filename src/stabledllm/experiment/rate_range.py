"""The range of learning rates over which a method ends near its best, from a grid of rates over paired seeds.

Symbols: S seeds, J learning rates in rising order, R resamples. ``nll_SJ`` holds final NLLs in nats per token, infinite
where a run diverged; x is the natural logarithm of a rate.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy import special  # scipy.stats would take a second to import

from stabledllm.stats.estimate import student

WITHIN = 0.02
"""How far above a method's best mean NLL on the grid its range goes, as a share of that best."""
LEAST_SEEDS = 6
"""Fewest seeds with an interval: the extremes of n values hold their median with probability 1 - 2^(1 - n), which is
95 % from 6 on, and no resample goes beyond the extremes."""
RESAMPLES = 9_999


@dataclass(frozen=True)
class Range:
    """Learning rates from ``low`` to ``high``; where it ends with the grid, the true range may go on."""

    low: float
    high: float
    open_below: bool
    open_above: bool

    @property
    def factor(self) -> float:
        """The highest rate over the lowest."""
        return self.high / self.low


def mean_curves(nll_SJ: ndarray, weight_RS: ndarray) -> ndarray:
    """The weighted mean NLL over seeds at each rate, shape (R, J): infinite where a run with a weight diverged."""
    ended = np.isfinite(nll_SJ)
    mean = weight_RS @ np.where(ended, nll_SJ, 0.0)
    return np.where(weight_RS @ ~ended > 0, np.inf, mean)


def ends_of(x_J: ndarray, curve_RJ: ndarray, within: float = WITHIN) -> tuple[ndarray, ndarray]:
    """The ends of each curve's widest range within ``within`` of its best, in x, shape (R,); NaN where all diverged.

    Between two rates the curve is the straight line over x. Towards a rate with an infinite mean it rises without
    bound, so that a range ends at the last rate at which every run ended.
    """
    limit = curve_RJ.min(1) * (1 + within)
    inside = np.isfinite(curve_RJ) & (curve_RJ <= limit[:, None])
    last = len(x_J) - 1
    low, high, begin = (np.full(len(curve_RJ), np.nan) for _ in range(3))
    for j in range(last + 1):
        starts = inside[:, j] if j == 0 else inside[:, j] & ~inside[:, j - 1]
        stops = inside[:, j] if j == last else inside[:, j] & ~inside[:, j + 1]
        begin = np.where(starts, _crossing(x_J, curve_RJ, limit, j, max(j - 1, 0)), begin)
        end = _crossing(x_J, curve_RJ, limit, j, min(j + 1, last))
        wider = stops & ~(high - low >= end - begin)
        low, high = np.where(wider, begin, low), np.where(wider, end, high)
    return low, high


def _crossing(x_J: ndarray, curve_RJ: ndarray, limit: ndarray, inner: int, outer: int) -> ndarray:
    """Where the line from rate ``inner``, within the limit, to its neighbour ``outer`` meets the limit, in x."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (limit - curve_RJ[:, inner]) / (curve_RJ[:, outer] - curve_RJ[:, inner])
    return x_J[inner] + np.where(np.isfinite(share), share, 0.0) * (x_J[outer] - x_J[inner])


def widest_range(rates: ndarray, nll_SJ: ndarray, within: float = WITHIN) -> Range | None:
    """The widest range of rates over which the mean NLL is within ``within`` of its best on the grid.

    None where some run diverged at every rate.

    >>> widest_range(np.array([1e-3, 2e-3, 4e-3]), np.array([[1.0, 1.01, 1.03]]))
    Range(low=0.001, high=0.0028284271247461905, open_below=True, open_above=False)
    """
    x = np.log(rates)
    (low,), (high,) = ends_of(x, mean_curves(nll_SJ, _even(len(nll_SJ))), within)
    if math.isnan(low):
        return None
    # An end on the grid is the rate itself, without the rounding of a logarithm.
    ends = (float(rates[x == end][0]) if (x == end).any() else math.exp(end) for end in (low, high))
    return Range(*ends, bool(low == x[0]), bool(high == x[-1]))


def range_intervals(rates: ndarray, nll_SJ: ndarray) -> dict[str, tuple[float, float]] | None:
    """95 % intervals of the range's ``low`` and ``high`` rate and of its ``factor``.

    None below :data:`LEAST_SEEDS`, and where there is no range. Where a range ends with the grid in a resample, the
    true end may be anywhere beyond, so that an interval may reach down to 0 or up to infinity.
    """
    if not _has_interval(nll_SJ):
        return None
    drawn, n = _resampled_ends(rates, nll_SJ), len(nll_SJ)
    pairs = {
        "low": (drawn.outer_low, drawn.low),
        "high": (drawn.high, drawn.outer_high),
        "factor": (drawn.high - drawn.low, drawn.outer_high - drawn.outer_low),
    }
    return {name: _exp(interval(least, most, n)) for name, (least, most) in pairs.items()}


def ratio_interval(rates: ndarray, nll_SJ: ndarray, other_SJ: ndarray) -> tuple[float, float] | None:
    """A 95 % interval of a method's range over another's, as a ratio of factors, from runs paired by seed.

    None below :data:`LEAST_SEEDS`, and where either has no range; 0 or infinity where a range that ends with the grid
    leaves that side unknown.
    """
    if not (_has_interval(nll_SJ) and _has_interval(other_SJ)):
        return None
    mine, other = (_resampled_ends(rates, each) for each in (nll_SJ, other_SJ))
    least = (mine.high - mine.low) - (other.outer_high - other.outer_low)
    most = (mine.outer_high - mine.outer_low) - (other.high - other.low)
    return _exp(interval(least, most, len(nll_SJ)))


def best_difference(nll_SJ: ndarray, other_SJ: ndarray) -> dict[str, float]:
    """The best mean NLL of a method minus another's, each at its own best rate, from runs paired by seed.

    With ``ci_low`` and ``ci_high``, 95 %, from :data:`LEAST_SEEDS` seeds on. Both minima are of noisy means, and so a
    little too low.
    """
    n = len(nll_SJ)
    mine, other = (mean_curves(each, _even(n)).min() for each in (nll_SJ, other_SJ))
    out = {"difference": float(mine - other)}
    if not (_has_interval(nll_SJ) and _has_interval(other_SJ)):
        return out
    drawn = mean_curves(nll_SJ, _resamples(n)).min(1) - mean_curves(other_SJ, _resamples(n)).min(1)
    low, high = interval(drawn, drawn, n)
    return out | {"ci_low": low, "ci_high": high}


def interval(least_R: ndarray, most_R: ndarray, n: int) -> tuple[float, float]:
    """A 95 % interval from resamples of n seeds that are each known to lie between ``least_R`` and ``most_R``.

    Percentiles of the bootstrap, taken so far out that for a mean they give Student's interval (Hesterberg, "What
    teachers should know about the bootstrap", 2015: the expanded percentile interval). Plain percentiles of six values
    cover 85 to 90 % instead of 95.
    """
    level = float(special.ndtr(-math.sqrt(n / (n - 1)) * student(n - 1)))
    low, high = (
        np.quantile(least_R, level, method="inverted_cdf"),
        np.quantile(most_R, 1 - level, method="inverted_cdf"),
    )
    return float(low), float(high)


@dataclass(frozen=True)
class _Ends:
    """The ends of the resamples' ranges in x, shape (R,); ``outer``: as far as the true ones may be."""

    low: ndarray
    high: ndarray
    outer_low: ndarray
    outer_high: ndarray


def _resampled_ends(rates: ndarray, nll_SJ: ndarray) -> _Ends:
    x = np.log(rates)
    low, high = ends_of(x, mean_curves(nll_SJ, _resamples(len(nll_SJ))))
    return _Ends(low, high, np.where(low == x[0], -np.inf, low), np.where(high == x[-1], np.inf, high))


def _has_interval(nll_SJ: ndarray) -> bool:
    """Whether there are seeds enough, and a rate at which no run diverged, so that every resample has a range."""
    return len(nll_SJ) >= LEAST_SEEDS and bool(np.isfinite(nll_SJ).all(0).any())


@functools.cache
def _resamples(n: int) -> ndarray:
    """The weights of n seeds in each resample, shape (R, n): the same for every method, which pairs them."""
    return np.random.default_rng(n).multinomial(n, _even(n)[0], size=RESAMPLES) / n


def _even(n: int) -> ndarray:
    return np.full((1, n), 1 / n)


def _exp(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = (math.exp(end) if end < math.inf else math.inf for end in ends)
    return low, high
