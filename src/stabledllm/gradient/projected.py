"""Errors of figures that were worked out from projected gradients: that of the rows, and the projection's own.

Legend: a rows, Q blocks of a projection (1 for exact gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate
from stabledllm.stats.jackknife import LEAST_ROWS, spread

Parts = Callable[[Tensor], Sequence[Tensor]]
"""Takes the rows kept (all, or all but one), gives quantities by block: (Q, ...), or (1, ...) where they are exact."""


def estimate(parts: Parts, rows: int, unit: str, combine: Callable[..., float | Tensor] = float) -> Estimate:
    """``combine`` of the means over blocks: jackknife errors over rows and over blocks, in quadrature."""
    everything = torch.arange(rows)
    found = parts(everything)
    value = _of_means(found, combine)
    if rows < LEAST_ROWS:
        return Estimate(value=value, stderr=float("nan"), n=rows, unit=unit)
    left_out = [_of_means(parts(everything[everything != i]), combine) for i in range(rows)]
    error = spread(torch.tensor(left_out, dtype=torch.float64))
    return Estimate(value=value, stderr=(error**2 + projection_error(found, combine) ** 2) ** 0.5, n=rows, unit=unit)


def projection_error(found: Sequence[Tensor], combine: Callable[..., float | Tensor] = float) -> float:
    """Standard error over the blocks: they are independent and alike, so that leaving each out tells it; 0 for one."""
    blocks = max(len(part) for part in found)
    if blocks == 1:
        return 0.0
    index = torch.arange(blocks)
    left_out = [_of_means([p if len(p) == 1 else p[index != q] for p in found], combine) for q in range(blocks)]
    return spread(torch.tensor(left_out, dtype=torch.float64))


def _of_means(found: Sequence[Tensor], combine: Callable[..., float | Tensor]) -> float:
    return float(combine(*(part.mean(0) for part in found)))
