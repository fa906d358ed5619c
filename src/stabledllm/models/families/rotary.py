"""Rotary position embedding (Su et al., arXiv:2104.09864), half-split layout, always computed in float32.

There is no buffer, which a cast of the model to bfloat16 or a load from the meta device could spoil.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(position_NL: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of ``position * theta^(-2 i / head_dim)``, both halves equal; float32, shape (N, L, head_dim)."""
    power = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_NL.device) / head_dim
    angle = position_NL[..., None].float() * (1.0 / theta**power)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()
