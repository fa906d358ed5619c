"""The square of the density of t with the least variance, by cell of t."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.sources import Source
from stabledllm.ppots.moments import LossMoments, SecondMoments

_FLOOR = 1e-4
"""Least value, as a share of the largest: an unbiased estimate may be 0 or negative where p must be positive."""


def optimal_square(moments: SecondMoments, source: Source | None = None, shared: float = 0.0) -> Tensor:
    """m(t) / kappa(t) by cell, shape (b,): the best p is proportional to its root.

    For iid u, m = E[g² + v]. Strata and low discrepancy average out the part of g that all rows share, and
    m = E[v] + Var_{x0} g (docs/mathematics.md#the-best-density-of-t), plus ``shared`` times (E g)² where the source is
    too coarse to average all of it out. kappa is the number of forwards.

    Args:
        source: of u; iid by default.
        moments: for sources other than iid those of losses, :class:`LossMoments`.

    >>> moments = SecondMoments(edges=torch.tensor([0.0, 0.5, 1.0]), moment=torch.tensor([[1.0, 8.0], [1.0, 10.0]]),
    ...                         cost=torch.ones(2))
    >>> optimal_square(moments)
    tensor([1., 9.])
    """
    if source is None or source.independent:
        m = moments.moment.mean(0)
    else:
        losses: LossMoments = moments
        m = losses.noise.mean(0) + losses.between_rows() + shared * losses.mean.mean(0) ** 2
    m = m / moments.cost
    # Flat losses under strata leave nothing to fit: every p is as good as uniform.
    return torch.ones_like(m) if m.max() <= 0 else torch.maximum(m, _FLOOR * m.max())
