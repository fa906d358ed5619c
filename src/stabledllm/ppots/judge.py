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
    return jackknife(lambda keep: float(first[keep].mean()) - pair_square(second[keep]), len(first), "nats²")


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
