"""The masking schedule: t in [0, 1] is the mask ratio, 0 clean and 1 all masked."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-3
"""Least masking probability (LLaDA's); keeps every weight 1 / p_mask at most 1000."""


def p_mask(t: Tensor, eps: float = EPS) -> Tensor:
    """Masking probability ``(1 - eps) t + eps``, same shape as ``t``."""
    return (1.0 - eps) * t + eps


Counts = Literal["linear", "cosine"]
"""How the number of masked tokens follows from t: in proportion, or by MaskGIT's cosine."""


def masked_count(t: Tensor, size: Tensor, counts: Counts = "linear") -> Tensor:
    """Tokens that a fixed count masks at t, at least 1 of the ``size`` = P; int64, shape of ``t``.

    ``linear``: ceil(t P). ``cosine``: round(P sin(pi t / 2)), which is MMaDA's round(P cos(pi u / 2)) at u = 1 - t
    (MaskGIT, arXiv:2202.04200; MMaDA, arXiv:2505.15809).
    """
    if counts == "linear":
        return (t * size).ceil().long().clamp(min=1).minimum(size)
    # Halves, of probability 0, round up.
    return (size * torch.sin(t * (math.pi / 2)) + 0.5).floor().long().clamp(min=1).minimum(size)


def largest_ratio(count: Tensor, size: Tensor, counts: Counts = "linear") -> Tensor:
    """The t up to which at most ``count`` of ``size`` tokens are masked; 0 for count 0; float64, shape of ``count``."""
    if counts == "linear":
        return count.double() / size
    edge = torch.asin(((count.double() + 0.5) / size).clamp(max=1.0)) * (2 / math.pi)
    return torch.where(count >= size, 1.0, torch.where(count <= 0, 0.0, edge))
