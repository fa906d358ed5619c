"""Positions of a step's rows, fixed where the step's batches are gathered over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRows:
    """One rank's view of a step. n local rows."""

    position: Tensor
    """Position in the step's global batch, int64, shape (n,); 0 for repeats."""
    counted: Tensor
    """False for rows repeated only to even out the ranks, bool, shape (n,)."""
    step_rows: int
    """True rows in the whole step."""
    step_weight: float
    """Sum of the row weights over the whole step."""
    first_unit: Tensor
    """Units in the step before the row's own, int64, shape (n,); ``position`` where a row is one unit."""
    step_units: int
    """Units in the whole step; ``step_rows`` where a row is one unit."""


def step_rows(places: Tensor, weights: Tensor, rank: int, full_step: int, units: Tensor | None = None) -> StepRows:
    """Each true row of the step is counted once, whatever ranks and micro-batches it came through.

    Args:
        places: place in the epoch's order of every row that any rank holds, shape (ranks, n).
        weights: row weights, shape (ranks, n). rank: whose rows are wanted.
        full_step: rows in a full step: the step that starts at a multiple of it is the current one.
        units: units (blocks) of each row, shape (ranks, n); without it a row is one unit.
    """
    start = int(places.max()) // full_step * full_step
    flat = places.flatten()
    order = flat.argsort(stable=True)
    first = torch.ones_like(flat, dtype=torch.bool)
    first[order[1:]] = flat[order[1:]] != flat[order[:-1]]
    counted = first & (flat >= start)
    position = torch.where(counted, flat - start, 0)
    n = int(counted.sum())
    each = torch.ones(n, dtype=torch.int64, device=flat.device)
    if units is not None:
        each[position[counted]] = units.flatten()[counted]
    first_unit = torch.where(counted, (each.cumsum(0) - each)[position], 0)
    return StepRows(
        position=position.view_as(places)[rank],
        counted=counted.view_as(places)[rank],
        step_rows=n,
        step_weight=float(weights.flatten()[counted].double().sum()),
        first_unit=first_unit.view_as(places)[rank],
        step_units=int(each.sum()),
    )
