"""The masking schedule: t in [0, 1] is the mask ratio, 0 clean and 1 all masked."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-3
"""Least masking probability (LLaDA's); keeps every weight 1 / p_mask at most 1000."""


def p_mask(t: Tensor, eps: float = EPS) -> Tensor:
    """Masking probability ``(1 - eps) t + eps``, same shape as ``t``."""
    return (1.0 - eps) * t + eps


def masked_count(t: Tensor, size: Tensor) -> Tensor:
    """Tokens that a fixed count masks at t: ceil(t P), at least 1, of the ``size`` = P; int64, shape of ``t``."""
    return (t * size).ceil().long().clamp(min=1).minimum(size)
