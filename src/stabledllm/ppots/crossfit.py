"""Second moments and variances under a density, on rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.sources import Source
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.moments import LossMoments, SecondMoments
from stabledllm.ppots.pieces import Pieces
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.jackknife import jackknife
from stabledllm.stats.pareto import pareto_k
from stabledllm.stats.shares import shares_of, spread_change

CrossFit = Sequence[tuple[TSampler, Tensor]]
"""Pairs of a density and the rows that it is applied to: rows that it was not fitted to."""

FOLDS = 5
EXCESS_ALLOWED = 0.05
"""How far EPR's second moment may lie above that of the tabulated density, as a share of it."""


def folds(rows: int, together: int = 1) -> list[Tensor]:
    """Row indices of each of :data:`FOLDS` folds, or of one fold a row where there are fewer rows than that.

    Args:
        together: rows that follow each other and stay in one fold.

    >>> folds(6)
    [tensor([0, 1]), tensor([2]), tensor([3]), tensor([4]), tensor([5])]
    >>> folds(6, together=2)
    [tensor([0, 1]), tensor([2, 3]), tensor([4, 5])]
    """
    units = torch.arange(rows).view(-1, together)
    return [fold.flatten() for fold in units.tensor_split(min(FOLDS, len(units)))]


def cross_fitted(moments: SecondMoments, source: Source, options: FitOptions) -> list[tuple[Tabulated, Tensor]]:
    """The densities fitted to all folds but one, each with the rows of the fold left out.

    >>> moments = SecondMoments(edges=torch.linspace(0, 1, 3).double(), moment=torch.ones(4, 2).double(),
    ...                         cost=torch.ones(2).double())
    >>> from stabledllm.noise.sources import IID
    >>> [rows.tolist() for _, rows in cross_fitted(moments, IID(), FitOptions(family="tabulated"))]
    [[0], [1], [2], [3]]
    """
    pairs = []
    for fold in folds(moments.rows, moments.together):
        others = torch.ones(moments.rows, dtype=torch.bool)
        others[fold] = False
        pairs.append((fit(moments.select(others), source, options).sampler, fold))
    return pairs


def weighted_moment(moments: SecondMoments, crossfit: CrossFit, weighs_by: WeighsBy | None = None) -> Tensor:
    """∫ E_M[l²] w² p dt of each row, under the density that is applied to it; shape (a,).

    >>> edges, moment = torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([[1.0, 3.0]]).double()
    >>> moments = SecondMoments(edges=edges, moment=moment, cost=torch.ones(2).double())
    >>> weighted_moment(moments, [(Tabulated([0.5, 1.5]), torch.tensor([0]))])  # (1 / 0.5 + 3 / 1.5) / 2
    tensor([2.0000], dtype=torch.float64)
    """
    return _by_row(moments, crossfit, lambda sampler, rows: moments.integrated(sampler, rows, weighs_by))


def _by_row(moments: SecondMoments, crossfit: CrossFit, value: Callable[[TSampler, Tensor], Tensor | float]) -> Tensor:
    """A value of each row under the density that is applied to it, shape (a,)."""
    out = torch.full((moments.rows,), torch.nan, dtype=torch.float64)
    for sampler, rows in crossfit:
        out[rows] = value(sampler, rows)
    return out


def variance_under(
    losses: LossMoments,
    crossfit: CrossFit,
    weighs_by: WeighsBy | None = None,
    removed: Callable[[Tensor], float] = lambda rows: 0.0,
) -> Estimate:
    """``∫ E[g² + v] w² p dt - (E l)²`` in nats², the variance of one row's loss for iid t; jackknife over rows.

    (E l)² is from pairs of different rows: the noise of the probe's mean would make its own square too large.

    Args:
        removed: what the source of u takes off the variance, for the rows that are used.

    >>> g = torch.tensor([[1.0], [1.0], [1.0], [1.0]]).double()  # no noise but that of the masks, v = 1/2
    >>> losses = LossMoments(edges=torch.tensor([0.0, 1.0]).double(), moment=g + 0.5, mean=g, noise=g / 2, masks=2,
    ...                      cost=torch.ones(1).double())
    >>> print(variance_under(losses, [(Tabulated([1.0]), torch.arange(4))]))
    0.5 ± 0 nats² (n=4)
    """
    second, plain, mean = weighted_moment(losses, crossfit, weighs_by), losses.mean @ losses.width, losses.mean.clone()
    for sampler, rows in crossfit:
        if not sampler.unbiased:  # an unbiased weight leaves the mean as it is, exactly
            mean[rows] *= losses.kernels(sampler, weighs_by)[1][rows]
    square = Pieces.cut(losses).mean_square(mean)

    def value(keep: Tensor) -> float:
        data = spread_change(plain[keep], shares_of(losses.share, keep))
        return float(second[keep].mean()) - square(keep) - removed(keep) + data

    return jackknife(value, losses.rows, "nats²")


def second_moment_under(norms: SecondMoments, crossfit: CrossFit, weighs_by: WeighsBy | None = None) -> Estimate:
    """``∫ E|grad l|² w² p dt`` of gradient norms, for iid t; jackknife over rows, or over those that belong together.

    >>> norms = SecondMoments(edges=torch.tensor([0.0, 1.0]).double(), moment=torch.full((4, 1), 2.0).double(),
    ...                       cost=torch.ones(1).double())
    >>> print(second_moment_under(norms, [(Tabulated([1.0]), torch.arange(4))]))
    2 ± 0 (nats/param)² (n=4)
    """
    second = weighted_moment(norms, crossfit, weighs_by).view(-1, norms.together).mean(1)
    return jackknife(lambda keep: float(second[keep].mean()), len(second), "(nats/param)²")


def dearer_than(
    moments: SecondMoments, crossfit: CrossFit, others: CrossFit, weighs_by: WeighsBy | None = None
) -> float | None:
    """The share by which ``∫ E_M[l²] w² p dt`` times the mean cost lies above that of other densities.

    None where that is within :data:`EXCESS_ALLOWED` or two paired standard errors over rows.

    >>> moments = SecondMoments(edges=torch.tensor([0.0, 0.5, 1.0]).double(), moment=torch.ones(4, 2).double(),
    ...                         cost=torch.ones(2).double())
    >>> flat, steep = ([(Tabulated(p), torch.arange(4))] for p in ([1.0, 1.0], [0.5, 1.5]))
    >>> f"{dearer_than(moments, steep, flat):.3f}"  # (1 / 0.5 + 1 / 1.5) / 2 - 1
    '0.333'
    """
    values, plain = (
        weighted_moment(moments, p, weighs_by)
        * _by_row(moments, p, lambda sampler, _: sampler.cdf(moments.edges).diff() @ moments.cost)
        for p in (crossfit, others)
    )
    excess = values - plain
    share, error = float(excess.mean() / plain.mean()), float(excess.std()) / len(excess) ** 0.5
    return share if share > EXCESS_ALLOWED and float(excess.mean()) > 2 * error else None


def tail_shape(values: Tensor, moments: SecondMoments, sampler: TSampler, weighs_by: WeighsBy | None = None) -> float:
    """Pareto-k of the weighted losses for t drawn from a density: the probe's losses are resampled by that density.

    Args:
        values: the losses, or norms, that the moments were taken of, shape (a, b, c).

    >>> moments = SecondMoments(edges=torch.tensor([0.0, 1.0]).double(), moment=torch.ones(100, 1).double(),
    ...                         cost=torch.ones(1).double())
    >>> tail_shape(torch.ones(100, 1, 1).double(), moments, Tabulated([1.0]))  # equal losses have no tail
    nan
    """
    weighted = values * moments.weights(sampler, weighs_by)[..., None]
    mass = sampler.log_prob(moments.rates).exp() * moments.width
    flat, mass = weighted.transpose(0, 1).flatten(), mass.T.repeat_interleave(values.shape[2], dim=1).flatten()
    upper = mass.cumsum(0)
    position = (torch.arange(len(flat), dtype=torch.float64) + 0.5) / len(flat) * upper[-1]
    return pareto_k(flat[torch.searchsorted(upper, position).clamp(max=len(flat) - 1)].numpy())
