"""What a density is worth, judged on rows it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.ppots.cells import WeighsBy, row_weights
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.pieces import Pieces
from stabledllm.ppots.profile import Profile
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.jackknife import jackknife
from stabledllm.stats.pareto import pareto_k
from stabledllm.stats.shares import kept, spread_change

Judged = Sequence[tuple[TSampler, Tensor]]
"""Densities and the rows each is judged on: with cross-fitting, rows it was not fitted on."""

EXCESS_ALLOWED = 0.05
"""Share of the second moment that EPR may cost more than the tabulated density."""


def folds(rows: int, count: int = 5) -> list[Tensor]:
    """Row indices of each fold; as many folds as rows where there are fewer."""
    return list(torch.arange(rows).tensor_split(min(count, rows)))


def cross_fitted(profile: Profile, source: str, options: FitOptions, count: int = 5) -> list[tuple[Tabulated, Tensor]]:
    """``(density, rows)`` pairs: each density was fitted on the rows of the other folds only."""
    everything = torch.ones(len(profile.rows), dtype=torch.bool)
    pairs = []
    for fold in folds(len(profile.rows), count):
        others = everything.clone()
        others[fold] = False
        pairs.append((fit(profile.select(others), source, options).sampler, fold))
    return pairs


def weighted_moment(profile: Profile, pairs: Judged, weighs_by: WeighsBy | None = None) -> Tensor:
    """∫ E_M[l²] w² p dt of each row, under the density it is judged by; shape (a,)."""
    out = torch.full((len(profile.rows),), torch.nan, dtype=torch.float64)
    for sampler, rows in pairs:
        out[rows] = profile.integrated(sampler, rows, weighs_by)
    return out


def variance_under(profile: Profile, pairs: Judged, weighs_by: WeighsBy | None = None) -> Estimate:
    """``∫ E[g² + v] w² p dt - (E l)²`` in nats², for iid t; jackknife over rows. (E l)² is from pairs of rows."""
    second, square = weighted_moment(profile, pairs, weighs_by), Pieces.cut(profile).mean_square(profile.row_mean())
    plain = profile.row_mean() @ profile.width

    def value(keep: Tensor) -> float:
        data = spread_change(plain[keep], kept(profile.share, keep))
        return float(second[keep].mean()) - square(keep) + data

    return jackknife(value, len(second), "nats²")


def second_moment_under(profile: Profile, pairs: Judged, weighs_by: WeighsBy | None = None) -> Estimate:
    """``∫ E|grad l|² w² p dt`` of a profile of gradient norms, for iid t; jackknife over rows."""
    first = weighted_moment(profile, pairs, weighs_by)
    return jackknife(lambda keep: float(first[keep].mean()), len(first), "(nats/param)²")


def dearer_than(profile: Profile, pairs: Judged, others: Judged, weighs_by: WeighsBy | None = None) -> float | None:
    """How far ``∫ E_M[l²] w² p dt`` times the mean cost lies above that of ``others``, as a share; None where that is
    within :data:`EXCESS_ALLOWED` or two paired standard errors over rows."""
    values, plain = (weighted_moment(profile, p, weighs_by) * _mean_cost(profile, p) for p in (pairs, others))
    excess = values - plain
    share, error = float(excess.mean() / plain.mean()), float(excess.std()) / len(excess) ** 0.5
    return share if share > EXCESS_ALLOWED and float(excess.mean()) > 2 * error else None


def _mean_cost(profile: Profile, pairs: Judged) -> Tensor:
    out = torch.full((len(profile.rows),), torch.nan, dtype=torch.float64)
    for sampler, rows in pairs:
        out[rows] = sampler.cdf(profile.edges).diff() @ profile.cost
    return out


def tail_shape(profile: Profile, sampler: TSampler, weighs_by: WeighsBy | None = None) -> float:
    """Pareto-k of the weighted loss under t ~ p: the probe's losses resampled systematically by the density."""
    losses = profile.row_losses * row_weights(profile, sampler, weighs_by)[..., None]
    mass = sampler.log_prob(profile.rates).exp() * profile.width
    values, share = losses.transpose(0, 1).flatten(), mass.T.repeat_interleave(losses.shape[2], dim=1).flatten()
    upper = share.cumsum(0)
    position = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values) * upper[-1]
    return pareto_k(values[torch.searchsorted(upper, position).clamp(max=len(values) - 1)].numpy())
