"""Rows of unequal length laid end to end in bins, so that no forward pass is spent on padding.

Only the forward sees bins: the noise is drawn before, on the rows as they are, and results are put back in their order.

Legend: N forward rows, L positions, M bins, C positions of a bin, S selected positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

LONGEST = 1.5
"""A bin is at most about this many times as long as the longest row: attention's cost grows with it."""


def balanced_bins(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in bins with the least padding: of the bins' even fillings the best, or every row in a bin of its own.

    For each number of bins, rows go longest first into the emptiest one (Graham, 1969). The same every time.
    """
    best, least = [[i] for i in range(len(lengths))], len(lengths) * max(lengths, default=0)
    if not least:
        return best
    longest, total = max(lengths), sum(lengths)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for count in range(-(-total // longest), int(total / (LONGEST * longest)), -1):
        bins: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, b) for b in range(count)]
        for row in order:
            size, b = heappop(filled)
            bins[b].append(row)
            heappush(filled, (size + lengths[row], b))
        padded = count * max(filled)[0]
        if padded < least:
            best, least = bins, padded
    return best


@dataclass(frozen=True)
class Packing:
    """Where every real token of (N, L) rows lies in (M, C) bins."""

    place: Tensor
    """Index in the flattened rows of each bin position, int64, shape (M, C); 0 at padding."""
    real: Tensor
    """False at the bins' own padding, bool, shape (M, C)."""
    segment_ids: Tensor
    """Number of the row within its bin, int64, shape (M, C)."""
    position_ids: Tensor
    """Position of each token in its own row, int64, shape (M, C)."""

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing:
        """Pack rows without their padding, on either side; ``attention_mask`` is False at it, shape (N, L)."""
        lengths = attention_mask.sum(1).tolist()
        bins = balanced_bins(lengths)
        # Without any row there are no bins, and the model still runs, as the other ranks' do.
        width = max((sum(lengths[row] for row in rows) for rows in bins), default=1)
        shape, device = (len(bins), width), attention_mask.device
        place, segment, position = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
        real = torch.zeros(shape, dtype=torch.bool)
        left = attention_mask.long().argmax(1).tolist()
        for b, rows in enumerate(bins):
            start = 0
            for number, row in enumerate(rows):
                here = slice(start, start + lengths[row])
                own = torch.arange(lengths[row])
                place[b, here], position[b, here] = row * attention_mask.shape[1] + left[row] + own, own
                segment[b, here], real[b, here] = number, True
                start = here.stop
        return cls(place.to(device), real.to(device), segment.to(device), position.to(device))

    def pack(self, rows: Tensor, padding: int | bool) -> Tensor:
        """(N, L) values in the bins' places, ``padding`` where there are none, shape (M, C)."""
        return rows.flatten()[self.place].masked_fill(~self.real, padding)

    def row_major(self, selected: Tensor) -> Tensor:
        """For the selected positions in the bins' order, their ranks in the rows' own order, int64, shape (S,).

        Args:
            selected: in the bins, bool, shape (M, C).
        """
        return self.place[selected].argsort().argsort()
