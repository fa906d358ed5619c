"""Attention masks of models in blocks, for SDPA and for transformers' 4D ``attention_mask``.

Those of training, over the noisy and the clean copies, are in ``families/two_copies.py``.
Legend: N rows of the forward, L positions. Every query attends to something; padding attends to padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(block_ids: Tensor) -> Tensor:
    """The mask by which a token attends to its own block and earlier ones, for one copy of each row, as in decoding.

    Args:
        block_ids: int64, shape (N, L); 0, 1, 2, ..., not decreasing, and -1 for padding, which nothing attends to.

    Returns:
        bool, shape (N, 1, L, L), [n, 0, query, key].
    """
    query, key = block_ids[:, :, None], block_ids[:, None, :]
    return ((key == query) | ((key >= 0) & (key < query)))[:, None]


def as_numbers(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add to the scores: 0 where ``allowed``, else -inf.

    SDPA would turn a bool mask into numbers anew in every layer, and keep them all for the backward pass; so they are
    made once, in the precision of the products.

    Args:
        dtype: that of the weights, which autocast may narrow.
    """
    if torch.is_autocast_enabled(allowed.device.type):
        dtype = torch.get_autocast_dtype(allowed.device.type)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
