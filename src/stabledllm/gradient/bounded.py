"""Intervals of figures with known limits: what cannot be negative, a share, and the cosine of two mean gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate, student
from stabledllm.stats.intervals import Ends
from stabledllm.stats.jackknife import LEAST_ROWS


def not_negative(found: Estimate) -> Estimate:
    """The estimate of what cannot be negative, with Student's lower end and the upper end on the scale of logarithms.

    Few rows often show too little of it and of its error at once. The upper end is that of the estimate or, where it is
    not told apart from 0, of the least one that would be: there the scale of logarithms has no end to speak of.

    >>> [round(end, 2) for end in not_negative(Estimate(value=2.0, stderr=0.5, n=10)).interval()]
    [0.87, 3.52]
    >>> [round(end, 2) for end in not_negative(Estimate(value=0.1, stderr=0.5, n=10)).interval()]
    [0.0, 3.07]
    """
    low, high = found.interval()
    half = high - found.value
    if not (math.isfinite(half) and half > 0):
        return found
    told = max(found.value, half)
    return replace(found, ends=(max(low, 0.0) if found.value > 0 else low, told * math.exp(half / told)))


def ends_within(means: Tensor, covariance: Tensor, freedom: float, limits: Ends) -> Ends:
    """Fieller's 95 % interval of ``means[0] / means[1]``, a ratio that lies within the limits.

    It holds the ratios r at which ``means[0] - r means[1]`` may be 0, cut to the limits; all between them where
    ``means[1]`` may be 0. One that misses them by chance holds half its width inside the nearest.

    Args:
        means: two estimates, (2,). covariance: of their errors, (2, 2). freedom: its degrees of freedom.

    >>> covariance = torch.diag(torch.tensor([0.01, 0.01]))
    >>> [round(end, 2) for end in ends_within(torch.tensor([1.0, 2.0]), covariance, 9, (0.0, 1.0))]
    [0.38, 0.63]
    >>> [round(end, 2) for end in ends_within(torch.tensor([-1.0, 2.0]), covariance, 9, (0.0, 1.0))]
    [0.0, 0.13]
    """
    # (means · (1, -r))² <= t² var(r) is a r² - 2 b r + c <= 0 with the coefficients of this form.
    form = (torch.outer(means, means) - student(freedom) ** 2 * covariance).double()
    c, b, a = float(form[0, 0]), float(form[0, 1]), float(form[1, 1])
    if a <= 0:
        return limits
    middle, half = b / a, max(b * b - a * c, 0.0) ** 0.5 / a
    (least, most), low, high = limits, middle - half, middle + half
    if high < least or low > most:
        return (least, min(least + half, most)) if high < least else (max(most - half, least), most)
    return max(low, least), min(high, most)


def cosine(figures: Tensor, left_out: Sequence[Tensor]) -> Estimate:
    """The cosine of two vectors, from their estimated product and squared norms, which may be anything by chance.

    The interval lies within [-1, 1]. It covers Fieller's and that of ``1 - cosine``, which cannot be negative: few
    observations show too little of a small angle. NaN where an estimated squared norm is not above 0.

    Args:
        figures: product, squared norm of one, of the other, (3,).
        left_out: the same without each independent observation, (n, 3), of the same scale; and without each block of a
            projection, whose error adds to theirs.

    >>> left_out = torch.tensor([[1.0, 2.0, 1.0], [1.2, 2.1, 0.9], [0.9, 1.9, 1.0], [0.9, 2.0, 1.1]])
    >>> print(cosine(torch.tensor([1.0, 2.0, 1.0]), [left_out]))
    0.7071 ± 0.17 (n=4)
    """
    n = len(left_out[0])
    if not min(figures[1:]) > 0:
        return Estimate(value=math.nan, stderr=math.nan, n=n)
    means = _product_and_norms(figures)
    value = float(means[0] / means[1])
    if n < LEAST_ROWS:
        return Estimate(value=_cut(value), stderr=math.nan, n=n)
    covariance = sum(_covariance(_product_and_norms(each)) for each in left_out)
    along = torch.tensor([1.0, -value], dtype=torch.float64)
    # Figures in proportion have no error but for rounding, which may be below 0.
    stderr = max(float(along @ covariance @ along), 0.0) ** 0.5 / float(means[1])
    low, high = ends_within(means, covariance, n - 1, (-1.0, 1.0))
    _, angle = not_negative(Estimate(value=1 - value, stderr=stderr, n=n)).interval()
    return Estimate(value=_cut(value), stderr=stderr, n=n, ends=(max(min(low, 1 - angle), -1.0), high))


def _product_and_norms(figures: Tensor) -> Tensor:
    """The product, and the product of the norms, (..., 2)."""
    product, one, other = figures.double().unbind(-1)
    return torch.stack([product, (one.clamp(min=0) * other.clamp(min=0)).sqrt()], -1)


def _covariance(left_out: Tensor) -> Tensor:
    """The jackknife covariance, from values without each observation, (n, 2)."""
    apart = left_out - left_out.mean(0)
    return apart.T @ apart * (len(apart) - 1) / len(apart)


def _cut(cosine: float) -> float:
    return min(max(cosine, -1.0), 1.0)
