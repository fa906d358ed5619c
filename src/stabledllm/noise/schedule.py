"""How the masking probability and the number of masked tokens follow from the mask ratio t (0 clean, 1 all masked)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-3
"""The least masking probability (LLaDA's); it keeps every weight 1 / p_mask at most 1000."""


def p_mask(t: Tensor, eps: float = EPS) -> Tensor:
    """The masking probability ``(1 - eps) t + eps``, same shape as ``t``.

    >>> p_mask(torch.tensor([0.0, 1.0]), eps=0.25)
    tensor([0.2500, 1.0000])
    """
    return (1.0 - eps) * t + eps


Counts = Literal["linear", "cosine"]
"""The rule by which the number of masked tokens follows from t: in proportion, or by MaskGIT's cosine; an ``InWindow``
(``noise/windows.py``) is a rule too."""


def masked_count(t: Tensor, size: Tensor, counts: Counts = "linear") -> Tensor:
    """The number of tokens that a fixed count masks at t, at least 1 of ``size`` = P; int64, shape of ``t``.

    ``linear``: ceil(t P). ``cosine``: round(P sin(pi t / 2)), which is MMaDA's round(P cos(pi u / 2)) at u = 1 - t
    (MaskGIT, arXiv:2202.04200; MMaDA, arXiv:2505.15809).

    >>> masked_count(torch.tensor([0.0, 0.6, 1.0]), torch.tensor([10, 10, 10]))
    tensor([ 1,  6, 10])
    """
    if not isinstance(counts, str):
        return counts.masked_count(t, size)
    if counts == "linear":
        return (t * size).ceil().long().clamp(min=1).minimum(size)
    # Halves round up; their probability is 0.
    return (size * torch.sin(t * (math.pi / 2)) + 0.5).floor().long().clamp(min=1).minimum(size)


def largest_ratio(count: Tensor, size: Tensor, counts: Counts = "linear") -> Tensor:
    """The largest t at which at most ``count`` of ``size`` tokens are masked, 0 for count 0; float64, as ``count``.

    >>> largest_ratio(torch.tensor([0, 1, 4]), torch.tensor(4))
    tensor([0.0000, 0.2500, 1.0000], dtype=torch.float64)
    """
    if not isinstance(counts, str):
        return counts.largest_ratio(count, size)
    if counts == "linear":
        return count.double() / size
    edge = torch.asin(((count.double() + 0.5) / size).clamp(max=1.0)) * (2 / math.pi)
    return torch.where(count >= size, 1.0, torch.where(count <= 0, 0.0, edge))
