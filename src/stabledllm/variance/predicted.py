"""What g, v and rho say about the variance of a training step, for any source, density and number of views.

Legend: a rows, b rates, n rows of a step, F forwards of a step, U points of a fine grid of u.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.sources import Source
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.crossfit import CrossFit, weighted_moment
from stabledllm.ppots.moments import LossMoments
from stabledllm.ppots.pieces import Pieces
from stabledllm.ppots.shared_noise import shared_forms
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_sum, of_variance, scaled, with_ends
from stabledllm.stats.jackknife import jackknife
from stabledllm.stats.shares import shares_of, spread_change
from stabledllm.variance.components import UNIT


def per_row_variance(
    losses: LossMoments,
    source: Source,
    crossfit: CrossFit,
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
            count's cell, which depends on the row's P.
    """
    second = weighted_moment(losses, crossfit, weighs_by)
    pieces, mean = Pieces.cut(losses), losses.mean.clone()
    for sampler, rows in crossfit:
        if not sampler.unbiased:  # an unbiased weight leaves the mean as it is, exactly
            mean[rows] *= losses.kernels(sampler, weighs_by)[1][rows]
    square = pieces.mean_square(mean)
    removed = [
        (_removed_noise(losses, pieces, sampler, source, step_rows, weighs_by), rows) for sampler, rows in crossfit
    ]

    def value(keep: Tensor) -> float:
        gone = sum(int(torch.isin(rows, keep).sum()) * removed_from(keep) for removed_from, rows in removed)
        data = spread_change(plain_mean[keep], shares_of(losses.share, keep))
        return float(second[keep].mean()) - square(keep) - gone / len(keep) + data

    plain_mean = losses.mean @ losses.width
    variance = jackknife(value, losses.rows, UNIT)
    return replace(variance, ends=of_variance(variance.value, variance.stderr, losses.rows - 1))


def _removed_noise(
    losses: LossMoments, pieces: Pieces, sampler: TSampler, source: Source, step_rows: int, weighs_by: WeighsBy | None
) -> Callable[[Tensor], float]:
    """Takes rows, gives what the source removes of Var_u h, without the bias from the noise of the rows' mean.

    It is a quadratic form in E_x0[h], h = g w, from pairs of different rows. Where rows have rates of their own, h is
    known as it is, and taken for linear between the pieces; on a grid g is, and the weight in between is exact.
    """
    if source.independent:
        return lambda keep: 0.0
    weighted = losses.mean * losses.weights(sampler, weighs_by)
    own = losses.rate is not None
    form = shared_forms(pieces.middle, sampler, source, step_rows, weighted=own)[1]
    return pieces.quadratic(weighted if own else weighted / sampler.weight(losses.rates), form)


def at_equal_compute(per_row: Estimate, cost: float, data_noise: Estimate) -> Estimate:
    """Noise at equal compute: ``F Var(step of F forwards) - C`` = cost x n Var - C, C being Standard's.

    For Standard it is A + B. K views of a row pay (K - 1) C for the rows they displace, so that many views
    of one row cannot game it.
    """
    value = cost * per_row.value - data_noise.value
    stderr = ((cost * per_row.stderr) ** 2 + data_noise.stderr**2) ** 0.5
    ends = of_sum([scaled(with_ends(per_row), cost), scaled(with_ends(data_noise), -1.0)])
    return Estimate(value=value, stderr=stderr, n=per_row.n, unit=UNIT, ends=ends)
