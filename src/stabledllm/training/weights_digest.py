"""A digest of a model's trained weights, another where any bit of them is another, made quickly on their device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_PIECE = 1 << 22
"""Weights read at once, so that no tensor is held again in 64-bit numbers."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 6_364_136_223_846_793_005
"""Odd, so that different places weigh differently."""


def weights_digest(model: nn.Module) -> str:
    """A digest of the bits of all trained weights; sums of whole numbers, which no order of adding changes.

    Weights that are sharded are gathered one after the other, so that every rank must call it.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sums = [(name, list(p.shape), str(p.dtype), _sum(p.detach())) for name, p in trained]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:32]


def _sum(weights: Tensor) -> int:
    weights = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
    flat = weights.contiguous().view(_BITS[weights.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _PIECE):
        bits = flat[start : start + _PIECE].to(torch.int64)
        place = torch.arange(start, start + len(bits), device=flat.device)
        total += (bits * (place * _FACTOR + 1)).sum()  # modulo 2^64
    return int(total)
