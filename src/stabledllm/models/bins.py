"""Sequences of unequal length laid end to end in bins of about one length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

LONGEST = 1.5
"""The most, roughly, that a bin is longer than the longest row; the cost of attention grows with it."""


def balanced_bins(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of each bin, in the packing that needs the fewest positions, padding included; deterministic.

    Candidates are one bin per row and, for each possible number of bins, the packing that puts rows, longest first,
    into the emptiest bin (Graham, 1969).

    >>> balanced_bins([5, 3, 2])
    [[0], [1, 2]]
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


def end_to_end(lengths: Sequence[int]) -> tuple[list[int], tuple[int, int]]:
    """Where each row begins in the bins, flattened, and the shape (bins, positions of a bin).

    Without rows there are no bins, of one position each.

    >>> end_to_end([5, 3, 2])
    ([0, 5, 8], (2, 5))
    """
    bins = balanced_bins(lengths)
    width = max((sum(lengths[row] for row in rows) for rows in bins), default=1)
    starts = [0] * len(lengths)
    for b, rows in enumerate(bins):
        place = b * width
        for row in rows:
            starts[row], place = place, place + lengths[row]
    return starts, (len(bins), width)
