"""Fixes the positions of a step's rows, from the places of the rows of all ranks.

Legend: n rows of each rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRows:
    """The rows of one step on all ranks."""

    position: Tensor
    """Position in the step's global batch, int64, shape (ranks, n); 0 for repeats."""
    counted: Tensor
    """False for rows repeated only to even out the ranks, bool, shape (ranks, n)."""
    step_rows: int
    """Rows in the whole step, without repeats."""
    step_weight: float
    """Sum of the row weights over the whole step."""


def step_rows(places: Tensor, weights: Tensor, full_step: int) -> StepRows:
    """The positions of a step's rows; each row counts once, whatever ranks and micro-batches hold it.

    Args:
        places: place in the epoch's order of every row that any rank holds, shape (ranks, n).
        weights: row weights, shape (ranks, n).
        full_step: rows in a full step: the step that starts at a multiple of it is the current one.
    """
    start = int(places.max()) // full_step * full_step
    flat = places.flatten()
    order = flat.argsort(stable=True)
    first = torch.ones_like(flat, dtype=torch.bool)
    first[order[1:]] = flat[order[1:]] != flat[order[:-1]]
    counted = first & (flat >= start)
    position = torch.where(counted, flat - start, 0)
    return StepRows(
        position=position.view_as(places),
        counted=counted.view_as(places),
        step_rows=int(counted.sum()),
        step_weight=float(weights.flatten()[counted].double().sum()),
    )
