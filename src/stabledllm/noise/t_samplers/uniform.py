"""t ~ U[0, 1], the density of the standard objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """The uniform density on [0, 1]; every weight is 1."""

    name = "uniform"
    unbiased = True

    def icdf(self, u: Tensor) -> Tensor:
        return u

    def cdf(self, t: Tensor) -> Tensor:
        return t.clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, 0.0, -torch.inf).to(t.dtype)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
