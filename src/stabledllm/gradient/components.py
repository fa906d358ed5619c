"""A, B and C of the gradient, from profiles of inner products.

All are traces of covariances, in (nats/param)², and unbiased: a squared mean is always a mean of products of
different points or different rows. Source: docs/mathematics.md#of-the-gradient, arXiv:2511.18159, arXiv:1812.06162.

Legend: a rows, b cells, n points of a row, Q blocks of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.projected import estimate, projection_error
from stabledllm.gradient.row_moments import RowMoments, bernoulli_moments
from stabledllm.gradient.sketch import block_products
from stabledllm.gradient.tail import tail_shape
from stabledllm.noise.densities import Uniform
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive
from stabledllm.stats.pareto import pareto_k
from stabledllm.stats.shares import vector_spread_change

UNIT = "(nats/param)²"
HEAVY = 0.7
"""Pareto-k from which the error of a mean cannot be trusted (Vehtari et al., arXiv:1507.02646)."""


@dataclass(frozen=True)
class GradientDecomposition:
    """The parts of tr Var(gradient of one row's loss), each with its standard error.

    >>> from stabledllm.gradient.example import example_profile
    >>> parts = decompose_gradient(example_profile())
    >>> abs(parts.mask_pattern.value + parts.mask_rate.value - parts.mask.value) < 1e-9
    True
    """

    mask_pattern: Estimate
    mask_rate: Estimate
    data: Estimate
    total: Estimate
    mask: Estimate
    """A + B, all the noise that masking adds."""
    mean_square: Estimate
    """Squared norm of the mean gradient."""
    noise_scale: Estimate
    """tr Var / |G|² in rows: the simple noise scale of McCandlish et al., arXiv:1812.06162."""
    pareto_k: float
    """Pareto-k of the squared gradient norm under iid t and Bernoulli masks."""
    rows_pareto_k: float
    """Pareto-k of the rows' mean squared norms: the tail that remains when t and counts are measured cell by cell."""
    sketch_error: float
    """Relative error of the total that comes from projection; 0 for exact gradients."""

    @property
    def heavy_tail(self) -> bool:
        """Whether the tail over t and masks is too heavy for the error of a mean of draws."""
        return heavy_tail(self.pareto_k)

    @property
    def heavy_rows(self) -> bool:
        """Whether a few rows decide the figures, so that no error from so many rows can be trusted."""
        return heavy_tail(self.rows_pareto_k)

    def as_dict(self) -> dict:
        """JSON form."""
        parts = {name: v.as_dict() for name in asdict(self) if isinstance(v := getattr(self, name), Estimate)}
        tail = {"pareto_k": self.pareto_k, "heavy_tail": self.heavy_tail}
        tail |= {"rows_pareto_k": self.rows_pareto_k, "heavy_rows": self.heavy_rows}
        return parts | tail | {"sketch_error": self.sketch_error}


def heavy_tail(k: float) -> bool:
    """Whether a Pareto-k is too large for the error of the mean to be trusted, or unknown (NaN).

    >>> heavy_tail(0.5), heavy_tail(math.nan)
    (False, True)
    """
    return not k < HEAVY


def decompose_gradient(
    profile: GradientProfile, moments: RowMoments | None = None, tail: float | None = None
) -> GradientDecomposition:
    """A, B and C of Standard's gradient from a profile of fixed counts; jackknife errors over rows.

    Args:
        moments: those of Standard, where the profile is of its own masks (``gradient/paired.py``).
        tail: the Pareto-k of the squared norm then.

    Raises:
        ValueError: without ``moments``, a profile of another masker or of several views.

    >>> from stabledllm.gradient.example import example_profile
    >>> list(decompose_gradient(example_profile()).as_dict())[:4]
    ['mask_pattern', 'mask_rate', 'data', 'total']
    """
    moments = moments or bernoulli_moments(profile, Uniform(), 1)
    own, pairs = row_mean_square(profile), PairMean(profile)
    parts = {
        "mask_pattern": lambda keep: (moments.second - moments.rate)[:, keep].mean(1),
        "mask_rate": lambda keep: (moments.rate - own)[:, keep].mean(1),
        "data": lambda keep: own[:, keep].mean(1) - pairs(keep) + pairs.spread_change(keep),
        "total": lambda keep: moments.second[:, keep].mean(1) - pairs(keep) + pairs.spread_change(keep),
        "mask": lambda keep: (moments.second - own)[:, keep].mean(1),
        "mean_square": pairs,
    }
    rows = len(profile.rows)
    estimates = {name: estimate(lambda keep, part=part: [part(keep)], rows, UNIT) for name, part in parts.items()}
    for name in ("mask_pattern", "mask", "total"):
        estimates[name] = as_positive(estimates[name])
    total = parts["total"](torch.arange(rows))
    return GradientDecomposition(
        **estimates,
        noise_scale=noise_scale(parts["total"], pairs, rows),
        pareto_k=tail_shape(profile) if tail is None else tail,
        rows_pareto_k=pareto_k(moments.second.mean(0).numpy()),
        sketch_error=projection_error([total]) / abs(float(total.mean())),
    )


def noise_scale(variance: Callable[[Tensor], Tensor], mean_square: Callable[[Tensor], Tensor], rows: int) -> Estimate:
    """The simple noise scale tr Var / |G|² in rows (McCandlish et al., arXiv:1812.06162); NaN if |G|² is not above 0.

    Args:
        variance: tr Var of one row's gradient by block, shape (Q,), as a function of the rows to use.
        mean_square: |G|² by block, shape (Q,), likewise.

    >>> noise_scale(lambda keep: torch.tensor([6.0]), lambda keep: torch.tensor([2.0]), rows=4).value
    3.0
    """

    def scale(top: float, bottom: float) -> float:
        return top / bottom if bottom > 0 else math.nan

    return estimate(lambda keep: [variance(keep), mean_square(keep)], rows, "rows", scale)


def as_positive(estimated: Estimate) -> Estimate:
    """The estimate of a quantity that cannot be negative, with the interval for those where it is above 0.

    >>> [round(end, 2) for end in as_positive(Estimate(value=2.0, stderr=0.5, n=10)).ends]
    [1.14, 3.52]
    """
    if not estimated.value > 0:
        return estimated
    return replace(estimated, ends=of_positive(estimated.value, estimated.stderr, estimated.n - 1))


def ratio_of(one: float, other: float) -> float:
    """The ratio of two numbers; NaN where the second is 0.

    >>> ratio_of(1.0, 2.0), ratio_of(1.0, 0.0)
    (0.5, nan)
    """
    return one / other if other else math.nan


def row_mean_square(profile: GradientProfile) -> Tensor:
    """|∫ g dt|² of each row, from pairs of different points, shape (Q, a).

    >>> from stabledllm.gradient.example import example_profile
    >>> row_mean_square(example_profile()).shape
    torch.Size([1, 4])
    """
    return torch.einsum("qapr,pr->qa", profile.gram, profile.pair_weight)


class PairMean:
    """|E g|², the square of the mean gradient over all rows or all but one, from pairs of different rows, by block.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> pairs, every = PairMean(profile), torch.arange(4)
    >>> pairs(every).shape, pairs.spread_change(every)
    (torch.Size([1]), tensor([0.], dtype=torch.float64))
    """

    def __init__(self, profile: GradientProfile):
        self.share = profile.share
        self.own = torch.einsum("qapr,p,r->qa", profile.gram, profile.point_width, profile.point_width)
        self.total, self.rows = profile.mean_square[:, -1], len(profile.rows)
        # Row by row: all rows at once in float64 are copied twice, hundreds of megabytes for rows of many points.
        h = torch.stack([profile.point_width @ points.double() for points in profile.sketch])
        cross = block_products(h, h.sum(0, keepdim=True))[..., 0] - block_products(h, h).diagonal(dim1=1, dim2=2)
        # h_i · Σ h by projection, but with each row's own square as measured: leaving a row out subtracts that.
        self.cross = (cross if len(self.total) > 1 else cross.mean(0, keepdim=True)) + self.own

    def __call__(self, keep: Tensor) -> Tensor:
        left_out, n = self._left_out(keep), len(keep)
        square = self.total - 2 * self.cross[:, left_out].sum(1) + self.own[:, left_out].sum(1)
        return (square - self.own[:, keep].sum(1)) / (n * (n - 1))

    def spread_change(self, keep: Tensor) -> Tensor:
        """The change of the spread of the rows' mean gradients under the token mean, by block (``stats/shares.py``).

        Of the products of the row left out with the others only the sum is known, and it is divided evenly among them:
        an error of the order of 1 / a of one row's part.
        """
        if self.share is None:
            return torch.zeros(len(self.total), dtype=torch.float64)
        left_out = self._left_out(keep)
        product = (self.cross - self.own)[:, left_out].sum(1, keepdim=True) / max(self.rows - 1, 1)
        cross = self.cross[:, keep] - product
        total = self.total - 2 * self.cross[:, left_out].sum(1) + self.own[:, left_out].sum(1)
        return vector_spread_change(cross, self.own[:, keep], total, self.share[keep])

    def _left_out(self, keep: Tensor) -> Tensor:
        unused = torch.ones(self.rows, dtype=torch.bool)
        unused[keep] = False
        left_out = unused.nonzero()[:, 0]
        if len(left_out) > 1:
            raise ValueError("expected at most one row to be left out")
        return left_out
