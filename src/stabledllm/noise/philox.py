"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011, section 4.3).

Written in int64 arithmetic so that every device gives the same bits: on the CPU by NumPy, whose calls cost a third of
torch's, elsewhere by torch. Checked against the known-answer vectors of the authors' Random123 distribution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# The last is the number of counters that the CPU takes at once: so many stay in its cache.
_MASK, _ROUNDS, _PART = 0xFFFFFFFF, 10, 1 << 14
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


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
    parts = flat.split(_PART, dim=1) if flat.is_cpu else [flat]
    return torch.cat([_rounds(part, seed) for part in parts]).view(*words.shape[1:], 4)


def _rounds(counters: Tensor, seed: int) -> Tensor:
    """The words of counters of shape (4, n), shape (n, 4)."""
    library, four = (np, counters.numpy()) if counters.is_cpu else (torch, counters)
    even, odd = four[::2], four[1::2]
    for multipliers, keys in _constants(seed, counters.device):
        # A product may wrap past 2**63; its low 64 bits are still those of the unsigned product, and what stands above
        # 32 bits in an odd word is dropped where it is used. The pair swaps places every round: (x0, x2) becomes
        # (x2, x0) and back, so that only the odd words are flipped.
        product = even * multipliers
        even, odd = ((product >> 32) ^ library.flip(odd, (0,)) ^ keys) & _MASK, product
    made = library.stack((even[0], odd[0] & _MASK, even[1], odd[1] & _MASK), -1)
    return torch.from_numpy(made) if counters.is_cpu else made


@lru_cache(maxsize=64)
def _constants(seed: int, device: torch.device) -> list[np.ndarray] | list[Tensor]:
    """The multipliers and the keys of every round, in the order of its pair, each of shape (2, 2, 1)."""
    keys = [((seed + r * _W0) & _MASK, ((seed >> 32) + r * _W1) & _MASK) for r in range(_ROUNDS)]
    rounds = [((_M0, _M1), key[::-1]) if r % 2 == 0 else ((_M1, _M0), key) for r, key in enumerate(keys)]
    made = torch.tensor(rounds, device=device)[..., None]
    return list(made.numpy() if made.is_cpu else made)
