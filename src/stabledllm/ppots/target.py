"""What p must be proportional to the root of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stabledllm.ppots.profile import Profile

Moment = Literal["second_moment", "mean_squared"]
_FLOOR = 1e-4
"""Least share of the largest value: an unbiased estimate may be 0 or negative where p must be positive."""


def optimal_square(
    profile: Profile, source: str = "iid", moment: Moment = "second_moment", shared: float = 0.0
) -> Tensor:
    """m(t) / kappa(t) at the profile's rates, shape (b,): the best p is proportional to its root.

    For iid u, m = E[g² + v]; with strata or low discrepancy the part of g that all rows share is averaged
    out by the source, and m = E[v] + Var_{x0} g (docs/mathematics.md#the-best-density-of-t), plus ``shared``
    times (E g)² where the source is too coarse to average all of it out. kappa is the number of forwards.
    ``mean_squared`` is the public code's (E g)² + E v, which leaves out Var_{x0} g: a named variant only.
    """
    if moment == "mean_squared":
        m = profile.row_mean().mean(0) ** 2 + profile.row_noise().mean(0)
    elif source == "iid":
        m = profile.row_second_moment().mean(0)
    else:
        m = profile.row_noise().mean(0) + profile.between_rows() + shared * profile.row_mean().mean(0) ** 2
    m = m / profile.cost
    # Flat losses under strata leave nothing to fit: any p is as good, so uniform.
    return torch.ones_like(m) if m.max() <= 0 else torch.maximum(m, _FLOOR * m.max())
