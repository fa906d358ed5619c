"""What a density is worth, judged on rows it was not fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.jackknife import jackknife, pair_square
from stabledllm.noise.t_samplers import Tabulated
from stabledllm.ppots.cells import cell_kernels
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.pareto import pareto_k
from stabledllm.ppots.profile import Profile
from stabledllm.shares import kept, spread_change

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


def weighted_moment(profile: Profile, pairs: list[tuple[Tabulated, Tensor]]) -> Tensor:
    """∫ E_M[l²] / p dt of each row, under the density it is judged by; shape (a,)."""
    moment = profile.row_second_moment()
    out = torch.full((len(moment),), torch.nan, dtype=torch.float64)
    for sampler, rows in pairs:
        out[rows] = moment[rows] @ (cell_kernels(sampler, profile.edges)[0] * profile.width)
    return out


def variance_under(profile: Profile, pairs: list[tuple[Tabulated, Tensor]]) -> Estimate:
    """``∫ E[g² + v] / p dt - (E l)²`` in nats², for iid t; jackknife over rows. (E l)² is from pairs of rows."""
    first, second = weighted_moment(profile, pairs), profile.row_mean() @ profile.width

    def value(keep: Tensor) -> float:
        data = spread_change(second[keep], kept(profile.share, keep))
        return float(first[keep].mean()) - pair_square(second[keep]) + data

    return jackknife(value, len(first), "nats²")


def second_moment_under(profile: Profile, pairs: list[tuple[Tabulated, Tensor]]) -> Estimate:
    """``∫ E|grad l|² / p dt`` of a profile of gradient norms, for iid t; jackknife over rows."""
    first = weighted_moment(profile, pairs)
    return jackknife(lambda keep: float(first[keep].mean()), len(first), "(nats/param)²")


def dearer_than(
    profile: Profile, pairs: list[tuple[Tabulated, Tensor]], others: list[tuple[Tabulated, Tensor]]
) -> float | None:
    """How far ``∫ E_M[l²] / p dt`` times the mean cost lies above that of ``others``, as a share; None where that is
    within :data:`EXCESS_ALLOWED` or two paired standard errors over rows."""
    values, plain = (weighted_moment(profile, p) * _mean_cost(profile, p) for p in (pairs, others))
    excess = values - plain
    share, error = float(excess.mean() / plain.mean()), float(excess.std()) / len(excess) ** 0.5
    return share if share > EXCESS_ALLOWED and float(excess.mean()) > 2 * error else None


def _mean_cost(profile: Profile, pairs: list[tuple[Tabulated, Tensor]]) -> Tensor:
    out = torch.full((len(profile.rows),), torch.nan, dtype=torch.float64)
    for sampler, rows in pairs:
        out[rows] = sampler.cdf(profile.edges).diff() @ profile.cost
    return out


def tail_shape(profile: Profile, sampler: Tabulated) -> float:
    """Pareto-k of l / p under t ~ p: the probe's losses resampled systematically by the density."""
    losses = profile.row_losses.movedim(1, 0).flatten(1)
    mass = sampler.cdf(profile.edges).diff()
    count = losses.numel()
    position = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    rate = torch.searchsorted(mass.cumsum(0), position).clamp(max=len(losses) - 1)
    within = torch.arange(count) - torch.searchsorted(rate, rate)
    picked = losses[rate, within % losses.shape[1]]
    return pareto_k((picked * cell_kernels(sampler, profile.edges)[0][rate]).numpy())
