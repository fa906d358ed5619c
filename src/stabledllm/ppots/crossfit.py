"""What a density is worth on rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.moments import LossMoments, SecondMoments
from stabledllm.ppots.pieces import Pieces
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.jackknife import jackknife
from stabledllm.stats.pareto import pareto_k
from stabledllm.stats.shares import shares_of, spread_change

CrossFit = Sequence[tuple[TSampler, Tensor]]
"""Densities, each with the rows on which it counts: rows that it was not fitted to."""

EXCESS_ALLOWED = 0.05
"""Share of the second moment that EPR may cost more than the tabulated density."""


def folds(rows: int, count: int = 5) -> list[Tensor]:
    """Row indices of each fold; as many folds as rows where there are fewer."""
    return list(torch.arange(rows).tensor_split(min(count, rows)))


def cross_fitted(
    moments: SecondMoments, source: str, options: FitOptions, count: int = 5
) -> list[tuple[Tabulated, Tensor]]:
    """``(density, rows)`` pairs: each density was fitted to the rows of the other folds only."""
    pairs = []
    for fold in folds(moments.rows, count):
        others = torch.ones(moments.rows, dtype=torch.bool)
        others[fold] = False
        pairs.append((fit(moments.select(others), source, options).sampler, fold))
    return pairs


def weighted_moment(moments: SecondMoments, crossfit: CrossFit, weighs_by: WeighsBy | None = None) -> Tensor:
    """∫ E_M[l²] w² p dt of each row, under the density that counts on it; shape (a,)."""
    out = torch.full((moments.rows,), torch.nan, dtype=torch.float64)
    for sampler, rows in crossfit:
        out[rows] = moments.integrated(sampler, rows, weighs_by)
    return out


def variance_under(losses: LossMoments, crossfit: CrossFit, weighs_by: WeighsBy | None = None) -> Estimate:
    """``∫ E[g² + v] w² p dt - (E l)²`` in nats², for iid t; jackknife over rows. (E l)² is from pairs of rows."""
    second, square = weighted_moment(losses, crossfit, weighs_by), Pieces.cut(losses).mean_square(losses.mean)
    plain = losses.mean @ losses.width

    def value(keep: Tensor) -> float:
        data = spread_change(plain[keep], shares_of(losses.share, keep))
        return float(second[keep].mean()) - square(keep) + data

    return jackknife(value, losses.rows, "nats²")


def second_moment_under(norms: SecondMoments, crossfit: CrossFit, weighs_by: WeighsBy | None = None) -> Estimate:
    """``∫ E|grad l|² w² p dt`` of gradient norms, for iid t; jackknife over rows."""
    second = weighted_moment(norms, crossfit, weighs_by)
    return jackknife(lambda keep: float(second[keep].mean()), norms.rows, "(nats/param)²")


def dearer_than(
    moments: SecondMoments, crossfit: CrossFit, others: CrossFit, weighs_by: WeighsBy | None = None
) -> float | None:
    """How far ``∫ E_M[l²] w² p dt`` times the mean cost lies above that of ``others``, as a share; None where that is
    within :data:`EXCESS_ALLOWED` or two paired standard errors over rows."""
    values, plain = (weighted_moment(moments, p, weighs_by) * _mean_cost(moments, p) for p in (crossfit, others))
    excess = values - plain
    share, error = float(excess.mean() / plain.mean()), float(excess.std()) / len(excess) ** 0.5
    return share if share > EXCESS_ALLOWED and float(excess.mean()) > 2 * error else None


def _mean_cost(moments: SecondMoments, crossfit: CrossFit) -> Tensor:
    out = torch.full((moments.rows,), torch.nan, dtype=torch.float64)
    for sampler, rows in crossfit:
        out[rows] = sampler.cdf(moments.edges).diff() @ moments.cost
    return out


def tail_shape(values: Tensor, moments: SecondMoments, sampler: TSampler, weighs_by: WeighsBy | None = None) -> float:
    """Pareto-k of the weighted loss under t ~ p: the probe's losses resampled systematically by the density.

    Args:
        values: losses, or norms, behind the moments, shape (a, b, c).
    """
    weighted = values * moments.weights(sampler, weighs_by)[..., None]
    mass = sampler.log_prob(moments.rates).exp() * moments.width
    flat, share = weighted.transpose(0, 1).flatten(), mass.T.repeat_interleave(values.shape[2], dim=1).flatten()
    upper = share.cumsum(0)
    position = (torch.arange(len(flat), dtype=torch.float64) + 0.5) / len(flat) * upper[-1]
    return pareto_k(flat[torch.searchsorted(upper, position).clamp(max=len(flat) - 1)].numpy())
