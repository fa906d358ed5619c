"""The masking schedule: t in [0, 1] is the mask ratio, 0 clean and 1 all masked."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-3
"""Least masking probability (LLaDA's); keeps every weight 1 / p_mask at most 1000."""


def p_mask(t: Tensor, eps: float = EPS) -> Tensor:
    """Masking probability ``(1 - eps) t + eps``, same shape as ``t``."""
    return (1.0 - eps) * t + eps
