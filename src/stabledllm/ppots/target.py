"""The square of the best density of t, by cell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stabledllm.ppots.moments import LossMoments, SecondMoments

Moment = Literal["second_moment", "mean_squared"]
_FLOOR = 1e-4
"""Least share of the largest value: an unbiased estimate may be 0 or negative where p must be positive."""


def optimal_square(
    moments: SecondMoments, source: str = "iid", moment: Moment = "second_moment", shared: float = 0.0
) -> Tensor:
    """m(t) / kappa(t) by cell, shape (b,): the best p is proportional to its root.

    For iid u, m = E[g² + v]; with strata or low discrepancy the part of g that all rows share is averaged
    out by the source, and m = E[v] + Var_{x0} g (docs/mathematics.md#the-best-density-of-t), plus ``shared``
    times (E g)² where the source is too coarse to average all of it out. kappa is the number of forwards.
    ``mean_squared`` is the public code's (E g)² + E v, which leaves out Var_{x0} g: a named variant only.

    Args:
        moments: of losses, for all but iid u and ``second_moment``.
    """
    whole = source == "iid" and moment == "second_moment"
    m = (moments.moment.mean(0) if whole else _split(moments, moment, shared)) / moments.cost
    # Flat losses under strata leave nothing to fit: any p is as good, so uniform.
    return torch.ones_like(m) if m.max() <= 0 else torch.maximum(m, _FLOOR * m.max())


def _split(losses: LossMoments, moment: Moment, shared: float) -> Tensor:
    """m where the square of the mean over rows does not count in full."""
    mean_square, noise = losses.mean.mean(0) ** 2, losses.noise.mean(0)
    if moment == "mean_squared":
        return mean_square + noise
    return noise + losses.between_rows() + shared * mean_square
