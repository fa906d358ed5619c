"""The place of a micro-batch's rows in the optimizer step, over ranks and accumulation: what the step's noise spans.

Every plug point needs it: a draw is a function of (seed, step, position), so that ranks that counted alone would all
draw the same, and would not lower the noise together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stabledllm.errors import UserError


def step_positions(
    sizes: Sequence[int], *, rank: int | None = None, ranks: int | None = None, strided: bool = False
) -> tuple[list[Tensor], int]:
    """The positions in the step of the rows of each of this rank's micro-batches, and the number of the step's rows.

    Every row of the step has one position, from 0 without gaps, whatever ranks and micro-batches hold the rows: one
    micro-batch of 8, two of 4, and two ranks with one of 4 each number the same rows alike.

    Args:
        sizes: rows of each micro-batch that this rank has in the step.
        rank, ranks: this data-parallel rank and their number, every one with the same sizes. Without them both are
            those of torch.distributed, and sizes are exchanged, where it is initialised; else there is one rank.
        strided: how the loader deals rows to ranks: row by row (torch's ``DistributedSampler``), or, by default, micro-
            batch by micro-batch (accelerate, transformers' Trainer).

    Raises:
        UserError: one of rank and ranks without the other, a rank out of range, or strided rows that are not shared
            out evenly.

    >>> step_positions([2, 2], rank=1, ranks=2)
    ([tensor([2, 3]), tensor([6, 7])], 8)
    >>> step_positions([2, 2], rank=1, ranks=2, strided=True)
    ([tensor([1, 3]), tensor([5, 7])], 8)
    """
    rank, by_rank = _sizes_by_rank(list(sizes), rank, ranks)
    total = sum(map(sum, by_rank))
    if strided:
        held = [sum(each) for each in by_rank]
        if len(set(held)) > 1:
            raise UserError(f"step_positions: expected as many rows on every rank of a strided loader, found {held}.")
        mine = torch.arange(held[rank]) * len(by_rank) + rank
        return list(mine.split(by_rank[rank])), total
    positions, before = [], 0
    for micro_batch in range(max(map(len, by_rank))):
        for r, each in enumerate(by_rank):
            rows = each[micro_batch] if micro_batch < len(each) else 0
            if r == rank and micro_batch < len(each):
                positions.append(torch.arange(before, before + rows))
            before += rows
    return positions, total


def _sizes_by_rank(sizes: list[int], rank: int | None, ranks: int | None) -> tuple[int, list[list[int]]]:
    """This rank, and the sizes of the micro-batches of every rank."""
    if (rank is None) != (ranks is None):
        raise UserError("step_positions: expected rank and ranks together, found one of them.")
    if ranks is not None:
        if not 0 <= rank < ranks:
            raise UserError(f"step_positions: expected a rank from 0 to {ranks - 1}, found {rank}.")
        return rank, [sizes] * ranks
    if not (dist.is_available() and dist.is_initialized()):
        return 0, [sizes]
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sizes)
    return dist.get_rank(), gathered
