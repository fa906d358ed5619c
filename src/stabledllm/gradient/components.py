"""A, B and C of the gradient, and what each method makes of them, from profiles of inner products.

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

from stabledllm.gradient.counts import counts_of
from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.projected import estimate, projection_error
from stabledllm.gradient.sketch import block_products
from stabledllm.gradient.tail import tail_shape
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.maskers.fixed_count import count_mass
from stabledllm.noise.schedule import masked_count
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_positive
from stabledllm.stats.pareto import pareto_k
from stabledllm.stats.shares import vector_spread_change

UNIT = "(nats/param)²"
HEAVY = 0.7
"""Pareto-k from which a mean's error is not to be trusted (Vehtari et al., arXiv:1507.02646)."""


@dataclass(frozen=True)
class GradientDecomposition:
    """The parts of tr Var(gradient of one row's loss), each with its standard error."""

    mask_pattern: Estimate
    mask_rate: Estimate
    data: Estimate
    total: Estimate
    mask: Estimate
    """A + B, all that masking adds."""
    mean_square: Estimate
    """Squared norm of the mean gradient."""
    noise_scale: Estimate
    """tr Var / |G|² in rows: the simple noise scale of McCandlish et al., arXiv:1812.06162."""
    pareto_k: float
    """Shape of the tail of the squared gradient norm under iid t and Bernoulli masks."""
    rows_pareto_k: float
    """The same of the rows' own means, which is what is left when t and counts are measured cell by cell."""
    sketch_error: float
    """What projection adds to the relative error of the total; 0 for exact gradients."""

    @property
    def heavy_tail(self) -> bool:
        return not self.pareto_k < HEAVY

    @property
    def heavy_rows(self) -> bool:
        """Whether a few rows decide, so that no figure of so many rows has an error to be trusted."""
        return not self.rows_pareto_k < HEAVY

    def as_dict(self) -> dict:
        """JSON form."""
        parts = {name: v.as_dict() for name in asdict(self) if isinstance(v := getattr(self, name), Estimate)}
        tail = {"pareto_k": self.pareto_k, "heavy_tail": self.heavy_tail}
        tail |= {"rows_pareto_k": self.rows_pareto_k, "heavy_rows": self.heavy_rows}
        return parts | tail | {"sketch_error": self.sketch_error}


@dataclass(frozen=True)
class RowMoments:
    """Per row, by block, shape (Q, a): what a method makes of the gradient of one row's loss."""

    second: Tensor
    """E |g|² under the method's density and views."""
    rate: Tensor | None = None
    """∫ |E_M g|² dt, where it was measured."""


def decompose_gradient(profile: GradientProfile) -> GradientDecomposition:
    """A, B and C of Standard's gradient from a profile of fixed counts; jackknife errors over rows.

    Raises:
        ValueError: a profile of another masker or of several views.
    """
    found = bernoulli_moments(profile, Uniform(), 1)
    own, pairs = row_mean_square(profile), PairMean(profile)
    parts = {
        "mask_pattern": lambda keep: (found.second - found.rate)[:, keep].mean(1),
        "mask_rate": lambda keep: (found.rate - own)[:, keep].mean(1),
        "data": lambda keep: own[:, keep].mean(1) - pairs(keep) + pairs.spread_change(keep),
        "total": lambda keep: found.second[:, keep].mean(1) - pairs(keep) + pairs.spread_change(keep),
        "mask": lambda keep: (found.second - own)[:, keep].mean(1),
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
        pareto_k=tail_shape(profile),
        rows_pareto_k=pareto_k(found.second.mean(0).numpy()),
        sketch_error=projection_error([total]) / abs(float(total.mean())),
    )


def noise_scale(variance: Callable[[Tensor], Tensor], mean_square: Callable[[Tensor], Tensor], rows: int) -> Estimate:
    """The simple noise scale tr Var / |G|² in rows, of McCandlish et al., arXiv:1812.06162.

    Args:
        variance, mean_square: take the rows kept, give tr Var of one row's gradient and |G|² by block, shape (Q,).
    """
    return estimate(lambda keep: [variance(keep), mean_square(keep)], rows, "rows", ratio_of)


def as_positive(found: Estimate) -> Estimate:
    """With the interval of what cannot be negative, where the estimate is not."""
    return replace(found, ends=of_positive(found.value, found.stderr, found.n - 1)) if found.value > 0 else found


def ratio_of(one: float, other: float) -> float:
    """A ratio with 0 allowed below it."""
    return one / other if other else math.nan


def row_mean_square(profile: GradientProfile) -> Tensor:
    """|∫ g dt|² of each row, from pairs of different points, shape (Q, a)."""
    return torch.einsum("qapr,pr->qa", profile.gram, profile.pair_weight)


def bernoulli_moments(profile: GradientProfile, sampler: TSampler, views: int) -> RowMoments:
    """Moments under Bernoulli masks, ``views`` independent ones averaged, and a density of t; from fixed counts.

    ``∫ (E|g|² / views + (1 - 1 / views) |E_M g|²) w² p dt``; ``rate`` is ``∫ |E_M g|² dt`` at uniform t.
    """
    if not profile.of_counts:
        raise ValueError(f"expected a profile of fixedcount, found {profile.method.name}")
    second, rate = [], []
    for i in range(len(profile.rows)):
        weights, count, scale = counts_of(profile, i)
        square = bernoulli_square(profile, sampler, i)
        of_count = weights.mean[count] * scale[:, None] * profile.size[i]
        pair = profile.pair_weight * profile.gram[:, i]
        rate.append((pair * ((of_count * weights.step) @ of_count.T)).sum((-2, -1)))
        if views > 1:
            shared = (pair * ((of_count * weights.step * _density(sampler, weights.t)) @ of_count.T)).sum((-2, -1))
            square = square / views + (1 - 1 / views) * shared
        second.append(square)
    return RowMoments(torch.stack(second, 1), torch.stack(rate, 1))


def bernoulli_square(profile: GradientProfile, sampler: TSampler, i: int) -> Tensor:
    """``∫ E|g|² w² p dt`` of row i under one Bernoulli mask, from fixed counts, by block, shape (Q,)."""
    weights, count, scale = counts_of(profile, i)
    point = profile.point_width * profile.size[i] * scale**2
    single = point * (weights.square @ (weights.step * _density(sampler, weights.t)))[count]
    return profile.gram[:, i].diagonal(dim1=-2, dim2=-1) @ single


def _density(sampler: TSampler, t: Tensor) -> Tensor:
    """``w² p`` where the weight is 1 / p(t) itself."""
    return (sampler.weight(t) ** 2 * sampler.log_prob(t).exp()).nan_to_num()


def direct_moments(profile: GradientProfile, sampler: TSampler) -> RowMoments:
    """Moments of the profile's own masker and views under a density of t, at each point's rate and its row's weight."""
    return RowMoments(torch.stack([direct_square(profile, sampler, i) for i in range(len(profile.rows))], 1))


def direct_square(profile: GradientProfile, sampler: TSampler, i: int) -> Tensor:
    """``E|g|²`` of row i under the profile's own masker and views, by block, shape (Q,)."""
    return profile.squares()[:, i] @ (_kernel(sampler, profile, i) * profile.point_width)


def point_weight(sampler: TSampler, profile: GradientProfile, i: int) -> Tensor:
    """Importance weight w of every point of row i, shape (n,)."""
    return profile.method.masker.weighs_by(sampler, int(profile.size[i])).weight(profile.t[i])


def _kernel(sampler: TSampler, profile: GradientProfile, i: int) -> Tensor:
    """``w² p`` at every point of row i, shape (n,); for counts averaged over the count's cell of t, exactly."""
    t, size = profile.t[i], profile.size[i]
    density = sampler.log_prob(t).exp()
    if profile.method.masker.counted:
        density = size * count_mass(sampler, masked_count(t, size), size.expand(t.shape))
    return point_weight(sampler, profile, i) ** 2 * density


class PairMean:
    """|E g|² over rows, from pairs of different rows, by block, for any set of rows kept."""

    def __init__(self, profile: GradientProfile):
        self.share = profile.share
        self.own = torch.einsum("qapr,p,r->qa", profile.gram, profile.point_width, profile.point_width)
        self.total, self.rows = profile.mean_square[:, -1], len(profile.rows)
        h = torch.einsum("ank,n->ak", profile.sketch.double(), profile.point_width)
        cross = block_products(h, h.sum(0, keepdim=True))[..., 0] - block_products(h, h).diagonal(dim1=1, dim2=2)
        # h_i · Σ h by projection, each row's own square as it is known: it is what leaving a row out needs.
        self.cross = (cross if len(self.total) > 1 else cross.mean(0, keepdim=True)) + self.own

    def __call__(self, keep: Tensor) -> Tensor:
        gone, n = self._left_out(keep), len(keep)
        square = self.total - 2 * self.cross[:, gone].sum(1) + self.own[:, gone].sum(1)
        return (square - self.own[:, keep].sum(1)) / (n * (n - 1))

    def spread_change(self, keep: Tensor) -> Tensor:
        """What the token mean changes of the spread of the rows' mean gradients, by block (``shares.py``).

        The products of the row left out with the others are known only by their sum: they are dealt out evenly, an
        error of the order of one row's part in one row's part.
        """
        if self.share is None:
            return torch.zeros(len(self.total), dtype=torch.float64)
        gone = self._left_out(keep)
        lost = (self.cross - self.own)[:, gone].sum(1, keepdim=True) / max(self.rows - 1, 1)
        cross = self.cross[:, keep] - lost
        total = self.total - 2 * self.cross[:, gone].sum(1) + self.own[:, gone].sum(1)
        return vector_spread_change(cross, self.own[:, keep], total, self.share[keep])

    def _left_out(self, keep: Tensor) -> Tensor:
        left_out = torch.ones(self.rows, dtype=torch.bool)
        left_out[keep] = False
        gone = left_out.nonzero()[:, 0]
        if len(gone) > 1:
            raise ValueError("expected at most one row to be left out")
        return gone
