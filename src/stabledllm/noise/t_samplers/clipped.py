"""t ~ U[a, b] with weight 1, as the peers train: another objective, named biased."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError


@dataclass(frozen=True)
class Clipped:
    """U[low, high] with weight 1. Biased: ratios outside the interval are never trained.

    The paper's interval is not published; [0.3, 0.8] is dFactory's.

    Raises:
        UserError: unless 0 <= low < high <= 1.
    """

    low: float = 0.3
    high: float = 0.8
    name = "clipped"
    unbiased = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise UserError(
                f"clipped: expected an interval 0 <= low < high <= 1, found low={self.low:g}, high={self.high:g}."
            )

    def icdf(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u

    def cdf(self, t: Tensor) -> Tensor:
        return ((t - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -torch.inf).to(t.dtype)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
