"""Packing: rows of unequal length are laid end to end in bins, so that no forward pass is spent on padding.

Only the forward pass works on bins: the noise is drawn before on the rows themselves, and results are put back in row
order.

Legend: N forward rows, L positions, M bins, C positions of a bin, S selected positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.models.bins import balanced_bins


@dataclass(frozen=True)
class Packing:
    """A map from the tokens of rows, shape (N, L), to their places in bins, shape (M, C).

    >>> bins = Packing.of(torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool())
    >>> bins.pack(torch.tensor([[11, 12, 13], [21, 0, 0], [31, 32, 0]]), padding=0)
    tensor([[11, 12, 13],
            [31, 32, 21]])
    """

    place: Tensor
    """Index in the flattened rows of each bin position, int64, shape (M, C); 0 at padding."""
    real: Tensor
    """False at the padding of bins, bool, shape (M, C)."""
    segment_ids: Tensor
    """Number of the row within its bin, int64, shape (M, C)."""
    position_ids: Tensor
    """Position of each token in its own row, int64, shape (M, C)."""

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing:
        """Pack the real tokens of rows; ``attention_mask``, shape (N, L), is False at padding, on either side."""
        lengths = attention_mask.sum(1).tolist()
        bins = balanced_bins(lengths)
        # Without rows there are no bins, but the model still runs, since those of the other ranks do.
        width = max((sum(lengths[row] for row in rows) for rows in bins), default=1)
        shape, device = (len(bins), width), attention_mask.device
        place, segment, position = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
        real = torch.zeros(shape, dtype=torch.bool)
        left = attention_mask.long().argmax(1).tolist()
        for b, rows in enumerate(bins):
            start = 0
            for number, row in enumerate(rows):
                span = slice(start, start + lengths[row])
                index = torch.arange(lengths[row])
                place[b, span], position[b, span] = row * attention_mask.shape[1] + left[row] + index, index
                segment[b, span], real[b, span] = number, True
                start = span.stop
        return cls(place.to(device), real.to(device), segment.to(device), position.to(device))

    def pack(self, rows: Tensor, padding: int | bool) -> Tensor:
        """The values of rows, shape (N, L), at their places in the bins, shape (M, C); ``padding`` elsewhere."""
        return rows.flatten()[self.place].masked_fill(~self.real, padding)

    def row_major(self, selected: Tensor) -> Tensor:
        """The rank in row order of each selected position, these taken in the order of the bins; int64, shape (S,).

        Args:
            selected: positions in the bins, bool, shape (M, C).
        """
        return self.place[selected].argsort().argsort()
