"""A, B and C of the gradient in blocks, and the split of B: single blocks give A and B, whole rows what they share.

A and B are sums over the blocks of a row, since every block has a t and masks of its own. So they are those of single
blocks, measured count by count as those of rows are (``gradient/components.py``), over the mean number of blocks of a
row. C, and B under one t for all blocks of a row, need whole rows.

Legend: a rows, u units (blocks of any row), Q blocks of coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.gradient.blocks import ProjectedUnitGradients, UnitRowGradients
from stabledllm.gradient.components import UNIT, GradientDecomposition, as_positive, decompose_gradient, row_mean_square
from stabledllm.gradient.nested_rows import NestedRows
from stabledllm.gradient.profile import GradientProfile, gradient_profile
from stabledllm.gradient.projected import estimate, projection_error
from stabledllm.gradient.row_moments import bernoulli_moments, bernoulli_square
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ends, Ratio, of_ratio, of_sum
from stabledllm.variance.blocks import RateSplit
from stabledllm.variance.some_masked import chance_of_some


@dataclass(frozen=True)
class UnitNoise:
    """The gradients of single blocks, from a profile of fixed counts; build it with :func:`unit_noise`.

    >>> from stabledllm.gradient.example import example_in_blocks
    >>> units, _ = example_in_blocks()
    >>> units.per_row, (units.hidden(Uniform()) < units.second(Uniform())).all()
    (1.75, tensor(True))
    """

    profile: GradientProfile
    weights: Tensor
    """``m (P_b / P)`` of each unit of the profile, shape (u,)."""
    per_row: float
    """m, the mean number of blocks of a row."""

    @cached_property
    def pattern(self) -> Tensor:
        """What each unit adds to A of a row, with mean A, shape (Q, u)."""
        return (self._moments.second - self._moments.rate) / self.per_row

    @cached_property
    def rate(self) -> Tensor:
        """The same of B where every block has a t of its own, shape (Q, u)."""
        return (self._moments.rate - row_mean_square(self.profile)) / self.per_row

    @property
    def single(self) -> Tensor:
        """The same of B of single blocks, ``E sum_b (P_b / P) Var_t g_b``, shape (Q, u)."""
        return self.rate * self.per_row / self.weights

    def second(self, sampler: TSampler, share=None) -> Tensor:
        """Of ``E |g|²`` under one independent mask of a density, shape (Q, u), as far as ``share(t, P_b)`` says."""
        own = [None if share is None else (lambda t, size=size: share(t, size)) for size in self.profile.size]
        each = [bernoulli_square(self.profile, sampler, i, part) for i, part in enumerate(own)]
        return torch.stack(each, 1) / self.per_row

    def hidden(self, sampler: TSampler) -> Tensor:
        """What masks that are drawn given that they hide a token leave out of a row's variance, shape (Q, u)."""
        return self.second(sampler, lambda t, size: 1 - chance_of_some(t, size, self.objective))

    @property
    def objective(self) -> Objective:
        """The objective whose gradients these are."""
        return self.profile.method.objective

    @cached_property
    def _moments(self):
        return bernoulli_moments(self.profile, Uniform(), 1)


def unit_noise(
    meter: UnitRowGradients | ProjectedUnitGradients, counts: Method, *, rows: int, rates: int, masks: int, seed: int
) -> UnitNoise:
    """Measure the gradients of ``rows`` single blocks under fixed counts, as :func:`gradient_profile` does of rows.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, counts = example_meter(UnitRowGradients, block_size=2), Method.parse("fixedcount")
    >>> unit_noise(meter, counts, rows=5, rates=2, masks=2, seed=0).pattern.shape
    torch.Size([1, 5])
    """
    profile = gradient_profile(meter, counts, rows=rows, rates=rates, masks=masks, seed=seed)
    return UnitNoise(profile, meter.weights[profile.rows], meter.units_per_row)


def decompose_in_blocks(units: UnitNoise, rows: NestedRows) -> GradientDecomposition:
    """A, B, C of Standard's gradient, every block with a t of its own; errors are over units and over rows.

    >>> from stabledllm.gradient.example import example_in_blocks
    >>> parts = decompose_in_blocks(*example_in_blocks())
    >>> abs(parts.mask_pattern.value + parts.mask_rate.value + parts.data.value - parts.total.value) < 1e-9
    True
    """
    whole = decompose_gradient(units.profile)
    a, b, mask = (_over(part, units.per_row) for part in (whole.mask_pattern, whole.mask_rate, whole.mask))
    n = len(rows.profile.rows)
    data = estimate(lambda keep: [rows.data_noise(keep)], n, UNIT)
    mean_square = estimate(lambda keep: [rows.pairs(keep)], n, UNIT)
    total = as_positive(
        Estimate(value=mask.value + data.value, stderr=math.hypot(mask.stderr, data.stderr), n=n, unit=UNIT)
    )
    return replace(
        whole, mask_pattern=a, mask_rate=b, mask=mask, data=data, total=total, mean_square=mean_square,
        noise_scale=scale_of(total, mean_square),
    )  # fmt: skip


def scale_of(variance: Estimate, mean_square: Estimate) -> Estimate:
    """The simple noise scale, tr Var over the squared norm of the mean gradient, in rows; NaN where that is not known.

    >>> one = Estimate(value=6.0, stderr=0.6, n=9)
    >>> print(scale_of(one, Estimate(value=2.0, stderr=0.0, n=9)))
    3 ± 0.3 rows (n=9)
    """
    n = min(variance.n, mean_square.n)
    if not mean_square.value > 0:
        return Estimate(value=math.nan, stderr=math.nan, n=n, unit="rows")
    value = variance.value / mean_square.value
    error = math.hypot(variance.stderr, value * mean_square.stderr) / mean_square.value
    return Estimate(value=value, stderr=error, n=n, unit="rows")


def split_of_gradient(units: UnitNoise, rows: NestedRows) -> RateSplit:
    """The split of B of the gradient, and what one t for all blocks of a row costs.

    Args:
        rows: measured at one t for all blocks of a row.

    >>> from stabledllm.gradient.example import example_in_blocks
    >>> split = split_of_gradient(*example_in_blocks())
    >>> abs(split.between_blocks.value + split.between_rows.value - split.of_blocks.value) < 1e-9
    True
    """
    single, own, shared = (mean_of(each) for each in (units.single, units.rate, rows.rate_noise))
    between = Estimate(
        value=single.value - shared.value, stderr=math.hypot(single.stderr, shared.stderr),
        n=min(single.n, shared.n), unit=UNIT,
    )  # fmt: skip
    bottom = mean_of(units.pattern + units.rate)
    top = mean_of(units.pattern).value + shared.value

    def difference(r: float) -> Ends:
        of_units = mean_of((1 - r) * units.pattern - r * units.rate)
        return of_sum([(part.value, part.interval()) for part in (of_units, shared)])

    known = bottom.interval()[0] > 0
    cost = of_ratio(top / bottom.value, difference) if known else Ratio(math.nan)
    return RateSplit(single, between, shared, own, cost, units.per_row)


def mean_of(each: Tensor, unit: str = UNIT) -> Estimate:
    """The mean over rows or units of values (Q, a), with the errors of their choice and of the projection.

    >>> print(mean_of(torch.tensor([[1.0, 2.0, 4.0, 5.0]])))
    3 ± 0.91 (nats/param)² (n=4)
    """
    n = each.shape[1]
    error = math.hypot(float(each.mean(0).std()) / n**0.5, projection_error([each.mean(1)]))
    return Estimate(value=float(each.mean()), stderr=error, n=n, unit=unit)


def _over(part: Estimate, by: float) -> Estimate:
    ends = None if part.ends is None else tuple(end / by for end in part.ends)
    return replace(part, value=part.value / by, stderr=part.stderr / by, ends=ends)
