"""What g, v and rho say about the variance of a training step, for any source, density and number of views.

Legend: a rows, b rates, n rows of a step, F forwards of a step, U points of a fine grid of u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.intervals import negated, of_sum, of_variance, scaled, with_ends
from stabledllm.jackknife import jackknife, pair_square
from stabledllm.noise.sources import Source
from stabledllm.noise.t_samplers import TSampler
from stabledllm.ppots.cells import cell_kernels
from stabledllm.ppots.profile import Profile
from stabledllm.ppots.remainder import shared_noise
from stabledllm.shares import kept, spread_change
from stabledllm.variance.nested import UNIT

Judged = Sequence[tuple[TSampler, Tensor]]
"""Densities and the rows each is judged on: with cross-fitting, rows it was not fitted on."""


WeighsBy = Callable[[TSampler, int], TSampler]
"""Takes a density and a row of the profile (0 to a - 1), gives the density whose reciprocal weighs that row."""


def per_row_variance(
    profile: Profile,
    source: Source,
    judged: Judged,
    step_rows: int,
    weighs_by: WeighsBy | None = None,
) -> Estimate:
    """n Var(step loss) of a step of n iid rows, in nats²; for iid t it is the variance of one row's loss.

    iid: ``∫ E[g²+v] w² p dt - (E l)²``. Other sources leave less of Var_t(E_x0[g] w): what remains within
    strata (with the n mod k extra points as a simple random sample of strata), or of the lattice's mean
    over its offset. Squares of means over rows, (E l)² and those in Var_t(E_x0[g] w), are from pairs of
    different rows: noise of the probe's mean is not taken for noise that the source removes, and both are
    unbiased under a given density. (With folds, E_x0[g] is from all rows, each fold's density from the others.)
    Jackknife over rows.

    Args:
        weighs_by: where rows are not weighed by 1 / p(t) itself: fixed counts pay 1 / (P pi_k), p averaged over the
            count's cell, which depends on the row's P. Exact for p that is constant on the probe's cells.
    """
    kernels = [(cell_kernels(sampler, profile.edges), rows) for sampler, rows in judged]
    width, weighed = profile.width, [_weighed(profile, sampler, weighs_by) for sampler, _ in judged]
    moments = [(own.row_second_moment(), own.row_mean()) for own in weighed]
    removed = [_removed_noise(p, sampler, source, step_rows) for p, (sampler, _) in zip(weighed, judged, strict=True)]

    def value(keep: Tensor) -> float:
        second, first, total, gone = 0.0, [], 0, 0.0
        for ((square, plain), rows), (moment, mean), removed_from in zip(kernels, moments, removed, strict=True):
            mine = rows[torch.isin(rows, keep)]
            second += float((moment[mine] @ (square * width)).sum())
            first.append(mean[mine] @ (plain * width))
            total += len(mine)
            if len(mine):
                gone += len(mine) * removed_from(keep)
        data = spread_change(plain_mean[keep], kept(profile.share, keep))
        return second / total - pair_square(torch.cat(first)) - gone / total + data

    plain_mean = profile.row_mean() @ width
    found = jackknife(value, len(profile.rows), UNIT)
    return replace(found, ends=of_variance(found.value, found.stderr, len(profile.rows) - 1))


def _weighed(profile: Profile, sampler: TSampler, weighs_by: WeighsBy | None) -> Profile:
    """The profile with each row's losses times its own weight over ``sampler``'s, so that all are weighed by that."""
    if weighs_by is None:
        return profile
    rates = profile.t.expand(len(profile.rows), -1) if profile.rate is None else profile.rate
    own = torch.stack([weighs_by(sampler, row).weight(rate) for row, rate in enumerate(rates)])
    return profile.scaled(own / sampler.weight(rates))


def _removed_noise(profile: Profile, sampler: TSampler, source: Source, step_rows: int) -> Callable[[Tensor], float]:
    """Takes rows, gives what the source removes of Var_u h, without the bias from the noise of the rows' mean.

    What is removed is a quadratic form Q in E_x0[g]; ``(n² Q(mean) - Σ_i Q(g_i)) / (n (n - 1))`` is the mean of
    its bilinear form over pairs of different rows, hence unbiased.
    """
    if source.name == "iid":
        return lambda keep: 0.0
    mean = profile.row_mean()

    def form(g: Tensor) -> float:
        return shared_noise(g, profile.t, sampler, source, step_rows)[1]

    of_row = torch.tensor([form(g) for g in mean], dtype=torch.float64)

    def from_pairs(keep: Tensor) -> float:
        n = len(keep)
        return float((n**2 * form(mean[keep].mean(0)) - of_row[keep].sum()) / (n * (n - 1)))

    return from_pairs


def mean_cost(profile: Profile, judged: Judged) -> float:
    """Forwards that a row pays on average under the density."""
    total, rows = 0.0, 0
    for sampler, index in judged:
        total += len(index) * float(sampler.cdf(profile.edges).diff() @ profile.cost)
        rows += len(index)
    return total / rows


def at_equal_compute(per_row: Estimate, cost: float, data_noise: Estimate) -> Estimate:
    """Noise at equal compute: ``F Var(step of F forwards) - C`` = cost x n Var - C, C being Standard's.

    For Standard it is A + B. K views of a row pay (K - 1) C for the rows they displace, so that many views
    of one row cannot game it.
    """
    value = cost * per_row.value - data_noise.value
    stderr = ((cost * per_row.stderr) ** 2 + data_noise.stderr**2) ** 0.5
    ends = of_sum([scaled(with_ends(per_row), cost), negated(with_ends(data_noise))])
    return Estimate(value=value, stderr=stderr, n=per_row.n, unit=UNIT, ends=ends)
