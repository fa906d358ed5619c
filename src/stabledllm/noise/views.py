"""Which uniforms the K views of a row use: the coupling between views, never their marginals.

Legend: B rows, K views, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.streams import Key, Stream


@dataclass(frozen=True)
class Single:
    """One view."""

    count = 1
    name = ""

    @property
    def switches(self) -> tuple[float, ...]:
        """Ratios in (0, 1) at which the number of used views changes."""
        return ()

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        """One uniform per row, view and token, float64, shape (B, K, L)."""
        return key.token_uniforms(Stream.MASK, rows, token_index)[:, None]

    def active(self, t: Tensor) -> Tensor:
        """Which views of each row are used, bool, shape (B, K)."""
        return torch.ones(len(t), self.count, dtype=torch.bool, device=t.device)

    def cost(self, t: Tensor) -> Tensor:
        """Forwards that a row at t pays, same shape as t."""
        return torch.full_like(t, float(self.count))


@dataclass(frozen=True)
class Mirror(Single):
    """MIRROR: the same u read from both ends, so masks are complementary at p_mask = 1/2.

    Both views have the right marginal; corr(m1, m2) = -p / (1 - p) for p <= 1/2 and -(1 - p) / p
    above. With ``below`` the second view is left out for t >= below (the first then counts alone),
    which changes neither the mean of the loss nor the importance weight.
    """

    below: float = 1.0
    count = 2
    name = "mirror"

    def __post_init__(self) -> None:
        if not 0.0 < self.below <= 1.0:
            raise UserError(f"mirror: expected mirror_below in (0, 1], found {self.below:g}.")

    @property
    def switches(self) -> tuple[float, ...]:
        return (self.below,) if self.below < 1.0 else ()

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        u = key.token_uniforms(Stream.MASK, rows, token_index)
        return torch.stack((u, 1.0 - u), dim=1)

    def active(self, t: Tensor) -> Tensor:
        second = (t < self.below) | (self.below >= 1.0)
        return torch.stack((torch.ones_like(second), second), dim=1)

    def cost(self, t: Tensor) -> Tensor:
        return self.active(t.flatten()).sum(1).to(t.dtype).view_as(t)


@dataclass(frozen=True)
class MultiSample(Single):
    """K independent masks at the same t (the paper's MultiSample-2 for K = 2)."""

    count: int = 2
    name = "multisample"

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 64:
            raise UserError(f"multisample: expected 2 to 64 views, found {self.count}.")

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        sets = [key.token_uniforms(Stream.MASK, rows, token_index, view=k) for k in range(self.count)]
        return torch.stack(sets, dim=1)


Views = Single | Mirror | MultiSample
