"""Moving rows to the front of their tensors, so that positions count from a row's first token.

Models with absolute positions (BERT) and those that predict from the token before (Dream, autoregressive ones) would
otherwise give another value for a row that starts after padding.

Legend: N rows, L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_last(attention_mask: Tensor) -> Tensor | None:
    """The order of positions that puts each row's real tokens first, in their own order; int64, shape (N, L).

    None where they are first already, and in a compiled graph, which reading the values would break: only training is
    compiled, and its rows are padded on the right.

    Args:
        attention_mask: False at padding, shape (N, L).
    """
    if torch.compiler.is_compiling():
        return None
    real = attention_mask.bool()
    if not bool((real[:, 1:] & ~real[:, :-1]).any()):
        return None
    return (~real).to(torch.uint8).argsort(dim=1, stable=True)
