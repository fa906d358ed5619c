"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011, section 4.3).

Written in int64 tensor arithmetic so that every device gives the same bits. Checked against the
known-answer vectors of the authors' Random123 distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: int) -> Tensor:
    """Four 32-bit words per counter, as int64 in [0, 2**32), stacked in a new last dimension.

    Args:
        c0, c1, c2, c3: int64 counters in [0, 2**32), broadcastable to one shape.
        seed: 64-bit key; its low and high words are the two key words.
    """
    x0, x1, x2, x3 = torch.broadcast_tensors(c0, c1, c2, c3)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        # The product may wrap past 2**63; its low 64 bits are still the unsigned ones.
        product0, product1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = (
            ((product1 >> 32) & _MASK) ^ x1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ x3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((x0, x1, x2, x3), dim=-1)
