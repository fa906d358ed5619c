"""Boolean attention masks of block diffusion, for SDPA and for transformers' 4D ``attention_mask``.

Legend: N rows of the forward, L positions. Every query attends to something; padding attends to padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(block_ids: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """The mask by which a token attends to its own block and earlier ones, for one copy of each row, as in decoding.

    Args:
        block_ids: int64, shape (N, L); 0, 1, 2, ..., not decreasing, and -1 for padding, which nothing attends to.
        segment_ids: the segments of packed rows, shape (N, L); blocks count from 0 in each segment.

    Returns:
        bool, shape (N, 1, L, L), [n, 0, query, key].
    """
    query, key = block_ids[:, :, None], block_ids[:, None, :]
    allowed = (key == query) | ((key >= 0) & (key < query))
    return _within(allowed, segment_ids)[:, None]


def block_diffusion_mask(block_ids: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """The mask of ``[noisy row | clean row]``, all blocks in one forward (BD3-LM, arXiv:2503.09573, section 3.3).

    Noisy block b attends to noisy block b and to the clean blocks before b; clean block b to the clean blocks up to
    b. Both halves have the same position ids. Arguments as in :func:`block_causal_mask`.

    Returns:
        bool, shape (N, 1, 2L, 2L); the noisy half comes first.
    """
    query, key = block_ids[:, :, None], block_ids[:, None, :]
    own, before = _within(key == query, segment_ids), _within((key >= 0) & (key < query), segment_ids)
    noisy = torch.cat((own, before), dim=2)
    clean = torch.cat((torch.zeros_like(own), own | before), dim=2)
    return torch.cat((noisy, clean), dim=1)[:, None]


def _within(allowed: Tensor, segment_ids: Tensor | None) -> Tensor:
    return allowed if segment_ids is None else allowed & (segment_ids[:, :, None] == segment_ids[:, None, :])
