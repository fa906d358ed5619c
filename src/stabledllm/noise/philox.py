"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011, section 4.3).

Written in int64 tensor arithmetic so that every device gives the same bits. Checked against the
known-answer vectors of the authors' Random123 distribution.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: int) -> Tensor:
    """The four 32-bit random words of each counter, as int64 in [0, 2**32), stacked in a new last dimension.

    Args:
        c0: int64 counters in [0, 2**32), broadcastable to one shape with the other three.
        c1: likewise.
        c2: likewise.
        c3: likewise.
        seed: 64-bit key; its low and high words are the two key words.

    >>> zero = torch.tensor(0)
    >>> [f"{word:08x}" for word in philox4x32(zero, zero, zero, zero, seed=0).tolist()]  # Random123's known answer
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))
    flat = words.view(4, words[0].numel())
    even, odd = flat[::2], flat[1::2]
    for multipliers, keys in _constants(seed, words.device):
        # A product may wrap past 2**63; its low 64 bits are still those of the unsigned product. The pair swaps places
        # every round: (x0, x2) becomes (x2, x0) and back, so that only the odd words are flipped.
        product = even * multipliers
        even = (product >> 32).bitwise_and_(_MASK).bitwise_xor_(odd.flip(0)).bitwise_xor_(keys)
        odd = product.bitwise_and_(_MASK)
    return torch.stack((even[0], odd[0], even[1], odd[1]), dim=-1).view(*words.shape[1:], 4)


@lru_cache(maxsize=64)
def _constants(seed: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The multipliers and the keys of every round, in the order of its pair, each of shape (2, 1)."""
    rounds, k0, k1 = [], seed & _MASK, (seed >> 32) & _MASK
    for r in range(_ROUNDS):
        pairs = ((_M0, k1), (_M1, k0)) if r % 2 == 0 else ((_M1, k0), (_M0, k1))
        rounds.append(torch.tensor(pairs, device=device).split(1, dim=1))
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return rounds
