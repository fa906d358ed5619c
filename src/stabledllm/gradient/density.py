"""P-POTS on the gradient: second moments E|grad l|² by cell of t, to which p is fitted.

The best p is proportional to the root of E|grad l|² / kappa. For a single Bernoulli view the second moment comes from
fixed counts (``gradient/counts.py``). The target is that of iid t for every source: the part of the gradient that
strata and lattices remove is small beside it, and norms alone do not tell it.

Legend: a rows, b cells, n points of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from stabledllm.gradient.counts import counts_of
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.predicted import profile_method
from stabledllm.gradient.profile import GradientProfile, gradient_profile, points_of
from stabledllm.gradient.row_moments import bernoulli_square, direct_square
from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.moments import Curve, SecondMoments
from stabledllm.ppots.profile import rate_edges


@dataclass(frozen=True, kw_only=True)
class NormMoments(SecondMoments):
    """Second moments of gradient norms by cell, with the points that they were computed from.

    >>> from stabledllm.gradient.example import example_meter
    >>> moments = norm_profile(example_meter(), Method(), rows=4, rates=4, masks=2, seed=0).moments
    >>> moments.rows, moments.select(torch.tensor([0])).rows
    (4, 1)
    """

    points: GradientProfile
    single: bool
    """Whether the points are fixed counts that stand for single Bernoulli masks."""

    def integrated(self, sampler: TSampler, rows: Tensor, weighs_by: WeighsBy | None = None) -> Tensor:
        """``∫ E|grad l|² w² p dt`` of some rows, at the points' own rates and the masker's own weights."""
        square = bernoulli_square if self.single else direct_square
        return torch.stack([square(self.points, sampler, i).mean() for i in rows.tolist()])

    def select(self, keep: Tensor) -> SecondMoments:
        """The moments by cell of some of the rows, which is all that a fit needs."""
        return SecondMoments(edges=self.edges, moment=self.moment[keep], cost=self.cost)

    def in_order(self, order: Tensor, together: int) -> NormMoments:
        """The same with its rows in another order, in which some belong together."""
        points = self.points
        by_row = {name: getattr(points, name)[order] for name in ("t", "sketch", "losses", "size", "rows")}
        lone = None if points.lone is None else points.lone[order]
        # The means of the first rows, in the order that they were measured in, are no part of the moments.
        points = replace(points, gram=points.gram[:, order], lone=lone, mean_square=points.mean_square * nan, **by_row)
        return replace(self, moment=self.moment[order], points=points, together=together)


@dataclass(frozen=True)
class NormProfile:
    """Gradient norms by row and cell of t, at unit importance weight.

    >>> from stabledllm.gradient.example import example_meter
    >>> profile = norm_profile(example_meter(), Method(), rows=4, rates=4, masks=2, seed=0)
    >>> profile.values.shape[2], profile.curves()["rho"]
    (1, None)
    """

    signal: str
    moments: NormMoments
    norm: Tensor
    """Root of the second moment by row and cell, shape (a, b)."""
    forward_passes: int

    @property
    def values(self) -> Tensor:
        """The norms in the shape of a profile's values, (a, b, 1)."""
        return self.norm[..., None]

    def curves(self) -> dict[str, Curve | None]:
        """No curve: of norms only the second moment is measured."""
        return dict.fromkeys(("g", "v", "v_views", "rho"))


def norm_profile(meter, method: Method, *, rows: int, rates: int, masks: int, seed: int) -> NormProfile:
    """Measure the norm of the row loss's gradient by row and cell of t.

    Args:
        meter: ``RowGradients`` or ``ProjectedGradients`` for the gradient itself, ``OutputLayerNorms`` for the proxy.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter = example_meter(OutputLayerNorms)
    >>> norm_profile(meter, Method(), rows=4, rates=4, masks=2, seed=0).signal
    'output layer'
    """
    measured = profile_method(method) or method
    proxy = isinstance(meter, OutputLayerNorms)
    points = (_head_points if proxy else gradient_profile)(
        meter, measured, rows=rows, rates=rates, masks=masks, seed=seed
    )
    single = isinstance(method.masker, Bernoulli) and points.of_counts
    edges = rate_edges(rates, meter.objective.floor) if single else points.edges
    square = torch.stack([(_bernoulli_cells if single else _cells)(points, i, edges) for i in range(len(points.rows))])
    norm, middle = square.clamp(min=0).sqrt(), (edges[1:] + edges[:-1]) / 2
    cost = method.views.cost(middle, points.size)
    moments = NormMoments(edges=edges, moment=norm**2, cost=cost, points=points, single=single)
    return NormProfile("output layer" if proxy else "gradient", moments, norm, points.forwards)


def _head_points(
    meter: OutputLayerNorms, method: Method, *, rows: int, rates: int, masks: int, seed: int
) -> GradientProfile:
    """A profile of the output layer's squared norms, without inner products of different points."""
    key, chosen, size, edges, cell, t = points_of(meter, method, rows=rows, rates=rates, masks=masks, seed=seed)
    a, n = t.shape
    losses, squares = torch.zeros(a * n, dtype=torch.float64), torch.zeros(a * n, dtype=torch.float64)
    before = meter.forwards
    for index, loss, square in meter.norms(chosen.repeat_interleave(n), t.flatten(), method, key):
        losses[index], squares[index] = loss, square
    return GradientProfile(
        method=method,
        edges=edges,
        cell=cell,
        t=t,
        gram=torch.diag_embed(squares.view(1, a, n)),
        sketch=torch.zeros(a, n, 1),
        lone=None,
        mean_square=torch.zeros(1, a, dtype=torch.float64),
        losses=losses.view(a, n),
        size=size,
        rows=chosen,
        objective=meter.objective,
        forwards=meter.forwards - before,
    )


def _cells(points: GradientProfile, i: int, edges: Tensor) -> Tensor:
    """Mean squared norm of row i in each cell, shape (b,)."""
    square = points.squares().mean(0)[i]
    return torch.zeros(len(edges) - 1, dtype=torch.float64).index_add_(0, points.cell, square) / points.cell.bincount()


def _bernoulli_cells(points: GradientProfile, i: int, edges: Tensor) -> Tensor:
    """Mean squared norm of row i in each cell under Bernoulli masks, from fixed counts, shape (b,)."""
    found = counts_of(points, i)
    weights, share = found.weights, points.point_width * found.share * found.scale**2 * points.squares().mean(0)[i]
    cell = (torch.searchsorted(edges, weights.t) - 1).clamp(0, len(edges) - 2)
    of_cell = torch.zeros(len(edges) - 1, len(found.index), dtype=torch.float64)
    of_cell.index_add_(0, cell, (weights.square[found.index] * weights.step).T)
    return of_cell @ share / edges.diff()


@dataclass(frozen=True)
class ProxyQuality:
    """How well the output layer represents the whole gradient, both measured on the same draws.

    >>> ProxyQuality(correlation=0.99, excess=0.02).as_dict()
    {'correlation': 0.99, 'excess': 0.02}
    """

    correlation: float
    """Correlation over t of the roots of the two second moments, cells weighted by their width."""
    excess: float
    """Share by which the gradient's second moment under the proxy's p exceeds that under its own p."""

    def as_dict(self) -> dict:
        """JSON form."""
        return dict(self.__dict__)


def proxy_quality(
    exact: SecondMoments, exact_density: TSampler, proxy: SecondMoments, proxy_density: TSampler
) -> ProxyQuality:
    """Compare the proxy's curve and density with the gradient's own.

    >>> from stabledllm.gradient.example import example_meter
    >>> from stabledllm.noise.densities import Uniform
    >>> exact = norm_profile(example_meter(), Method(), rows=4, rates=4, masks=2, seed=0).moments
    >>> proxy_quality(exact, Uniform(), exact, Uniform()).excess  # the gradient as its own proxy
    0.0
    """
    curves = [moments.curve().value.sqrt().numpy() for moments in (exact, proxy)]
    correlation = np.cov(*curves, aweights=exact.width.numpy())

    def cost(density: TSampler) -> float:
        return float(exact.integrated(density, torch.arange(exact.rows)).mean())

    return ProxyQuality(
        correlation=float(correlation[0, 1] / (correlation[0, 0] * correlation[1, 1]) ** 0.5),
        excess=cost(proxy_density) / cost(exact_density) - 1,
    )
