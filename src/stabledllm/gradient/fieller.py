"""Intervals of ratios: of a share, of the cosine of two mean gradients, and of what cannot be negative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate, student
from stabledllm.stats.intervals import Ends, of_estimated_ratio, of_positive, widest
from stabledllm.stats.jackknife import LEAST_ROWS


def ends_within(means: Tensor, covariance: Tensor, freedom: float, limits: Ends) -> Ends:
    """Fieller's 95 % interval of ``means[0] / means[1]``, a ratio that lies within the limits.

    It holds the ratios r at which ``means[0] - r means[1]`` may be 0, cut to the limits; all between them where
    ``means[1]`` may be 0.

    Args:
        means: two estimates, (2,). covariance: of their errors, (2, 2). freedom: its degrees of freedom.

    >>> ends = ends_within(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([0.01, 0.01])), 9, (0.0, 1.0))
    >>> [round(end, 2) for end in ends]
    [0.38, 0.63]
    """
    # (means · (1, -r))² <= t² var(r) is a r² - 2 b r + c <= 0 with the coefficients of this form.
    form = (torch.outer(means, means) - student(freedom) ** 2 * covariance).double()
    c, b, a = float(form[0, 0]), float(form[0, 1]), float(form[1, 1])
    if a <= 0:
        return limits
    root = max(b * b - a * c, 0.0) ** 0.5
    low, high = (min(max((b + side) / a, limits[0]), limits[1]) for side in (-root, root))
    return low, high


def cosine(figures: Tensor, left_out: Sequence[Tensor]) -> Estimate:
    """The cosine of two vectors, from their estimated product and squared norms, which may be anything by chance.

    The interval lies within [-1, 1]; it covers Fieller's, and Student's of ``1 - cosine`` on the scale of logarithms,
    since few observations show too little of a small angle. NaN where a squared norm is not above 0.

    Args:
        figures: product, squared norm of one, of the other, (3,).
        left_out: the same without each independent observation, (n, 3); and without each block of a projection, whose
            error adds to theirs.

    >>> left_out = torch.tensor([[1.0, 2.0, 1.0], [1.2, 2.1, 0.9], [0.9, 1.9, 1.0], [0.9, 2.0, 1.1]])
    >>> print(cosine(torch.tensor([1.0, 2.0, 1.0]), [left_out]))
    0.7071 ± 0.17 (n=4)
    """
    n = len(left_out[0])
    if min(figures[1:]) <= 0:
        return Estimate(value=math.nan, stderr=math.nan, n=n)
    means = _product_and_norms(figures)
    value = float(means[0] / means[1])
    if n < LEAST_ROWS:
        return Estimate(value=_cut(value), stderr=math.nan, n=n)
    covariance = sum(_covariance(_product_and_norms(each)) for each in left_out)
    along = torch.tensor([1.0, -value], dtype=torch.float64)
    stderr = float(along @ covariance @ along) ** 0.5 / float(means[1])
    low, high = of_positive(1 - value, stderr, n - 1)
    ends = widest(ends_within(means, covariance, n - 1, (-1.0, 1.0)), (_cut(1 - high), _cut(1 - low)))
    return Estimate(value=_cut(value), stderr=stderr, n=n, ends=ends)


def not_negative(found: Estimate) -> Estimate:
    """The estimate of what cannot be negative, with the interval that covers Student's and the one on logarithms.

    >>> [round(end, 2) for end in not_negative(Estimate(value=2.0, stderr=0.5, n=10)).interval()]
    [0.87, 3.52]
    """
    ratio = of_estimated_ratio(found)
    return replace(found, ends=(ratio.ci_low, ratio.ci_high)) if ratio.is_known else found


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
