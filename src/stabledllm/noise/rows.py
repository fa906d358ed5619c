"""The rows that the noise of a micro-batch is drawn for. B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of one micro-batch: all that the noise depends on.

    >>> from stabledllm.noise.methods import Key, Method, Uniform
    >>> import torch
    >>> maskable = torch.tensor([[False, True, True, True]])  # one row with a prompt of one token
    >>> rows = Rows(torch.tensor([0]), 1, maskable, token_index=torch.arange(4))
    >>> Method.parse("fixedcount").draw(Key(0, 0), rows, Uniform()).mask.shape
    torch.Size([1, 1, 4])
    """

    position: Tensor
    """Position of each row in the step's global batch, int64, shape (B,)."""
    step_rows: int
    """Number of rows in the whole step, over all ranks and accumulation, without repeats that even out ranks."""
    maskable: Tensor
    """Tokens that may be masked, bool, shape (B, L)."""
    token_index: Tensor
    """Index of each token in its unpadded row, shape (L,) or (B, L)."""
    delimiter: Tensor | None = None
    """Answer delimiters, bool, shape (B, L); only ISAD reads it."""
