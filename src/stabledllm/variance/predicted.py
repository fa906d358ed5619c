"""The variance of a training step as predicted from g, v and rho, for any source, density and number of views.

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
from stabledllm.ppots.crossfit import CrossFit, variance_under
from stabledllm.ppots.moments import LossMoments
from stabledllm.ppots.pieces import Pieces
from stabledllm.ppots.shared_noise import shared_forms
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_sum, of_variance, scaled, with_ends
from stabledllm.variance.components import UNIT


def per_row_variance(
    losses: LossMoments, source: Source, crossfit: CrossFit, step_rows: int, weighs_by: WeighsBy | None = None
) -> Estimate:
    """n Var(step loss) of a step of n iid rows, in nats²; for iid t it is the variance of one row's loss.

    For iid t it is ``∫ E[g² + v] w² p dt - (E l)²`` (:func:`variance_under`). Other sources leave less of
    Var_t(E_x0[g] w): the part within strata (with the n mod k extra points as a simple random sample of strata), or the
    variance of a lattice's mean over its offset. Squares of means over rows, (E l)² and those in Var_t(E_x0[g] w), are
    from pairs of different rows, so that noise of the probe's mean is not taken for noise that the source removes; both
    are unbiased under a given density. (With folds, E_x0[g] is from all rows, each fold's density from the others.)
    Errors are by the jackknife over rows.

    Args:
        weighs_by: needed where a row's weight is not 1 / p(t) itself; with fixed counts it is 1 / (P pi_k), p averaged
            over the count's cell, which depends on the row's P.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.sources import IID
    >>> g = torch.ones(4, 1).double()
    >>> losses = LossMoments(edges=torch.tensor([0.0, 1.0]).double(), moment=g + 0.5, mean=g, noise=g / 2, masks=2,
    ...                      cost=torch.ones(1).double())
    >>> per_row_variance(losses, IID(), [(Uniform(), torch.arange(4))], step_rows=8).value
    0.5
    """
    pieces = Pieces.cut(losses)
    by_density = [
        (_removed_noise(losses, pieces, sampler, source, step_rows, weighs_by), rows) for sampler, rows in crossfit
    ]

    def removed(keep: Tensor) -> float:
        return sum(int(torch.isin(rows, keep).sum()) * noise(keep) for noise, rows in by_density) / len(keep)

    variance = variance_under(losses, crossfit, weighs_by, removed)
    return replace(variance, ends=of_variance(variance.value, variance.stderr, losses.rows - 1))


def _removed_noise(
    losses: LossMoments, pieces: Pieces, sampler: TSampler, source: Source, step_rows: int, weighs_by: WeighsBy | None
) -> Callable[[Tensor], float]:
    """A function of the rows to use: the part of Var_u h that the source removes, h = g w, without bias.

    It is a quadratic form in E_x0[h], from pairs of different rows. Where rows have rates of their own, h is measured,
    and taken to be linear between the pieces; on a grid g is, and the weight in between is exact.
    """
    if source.independent:
        return lambda keep: 0.0
    weighted = losses.mean * losses.weights(sampler, weighs_by)
    own = losses.rate is not None
    form = shared_forms(pieces.middle, sampler, source, step_rows, weighted=own)[1]
    return pieces.quadratic(weighted if own else weighted / sampler.weight(losses.rates), form)


def at_equal_compute(per_row: Estimate, cost: float, data_noise: Estimate) -> Estimate:
    """Noise at equal compute: ``F Var(step of F forwards) - C``, which is cost x n Var - C, with Standard's C.

    For Standard it is A + B. K views of a row pay (K - 1) C for the rows that they displace, so that many views of one
    row gain nothing by that.

    >>> both = (Estimate(value=value, stderr=0.0, n=10, unit=UNIT) for value in (3.0, 1.0))
    >>> at_equal_compute(next(both), 2.0, next(both)).value  # 2 x 3 - 1
    5.0
    """
    value = cost * per_row.value - data_noise.value
    stderr = ((cost * per_row.stderr) ** 2 + data_noise.stderr**2) ** 0.5
    ends = of_sum([scaled(with_ends(per_row), cost), scaled(with_ends(data_noise), -1.0)])
    return Estimate(value=value, stderr=stderr, n=per_row.n, unit=UNIT, ends=ends)
