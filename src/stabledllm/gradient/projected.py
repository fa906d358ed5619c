"""Errors of figures from projected gradients: that of the choice of rows, and that of the projection.

Legend: a rows, Q blocks of a projection (1 for exact gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate
from stabledllm.stats.jackknife import jackknife, leave_one_out, spread

Parts = Callable[[Tensor], Sequence[Tensor]]
"""A function of the rows to use (all, or all but one): quantities by block, (Q, ...), or (1, ...) where exact."""


def estimate(parts: Parts, rows: int, unit: str, combine: Callable[..., float | Tensor] = float) -> Estimate:
    """Estimate ``combine`` of the means over blocks; the errors of rows and of blocks add up in quadrature.

    >>> x = torch.tensor([[1.0, 2.0, 4.0, 5.0]])  # a single block: exact
    >>> print(estimate(lambda keep: [x[:, keep].mean(1)], 4, "nats"))
    3 ± 0.91 nats (n=4)
    """
    of_rows = jackknife(lambda keep: _of_means(parts(keep), combine), rows, unit)
    of_blocks = projection_error(parts(torch.arange(rows)), combine)
    return replace(of_rows, stderr=(of_rows.stderr**2 + of_blocks**2) ** 0.5)


def projection_error(parts: Sequence[Tensor], combine: Callable[..., float | Tensor] = float) -> float:
    """Standard error of the projection, by a jackknife over its independent blocks; 0 for a single block.

    >>> projection_error([torch.tensor([1.0, 3.0])])
    1.0
    """
    blocks = max(len(part) for part in parts)
    if blocks == 1:
        return 0.0
    left_out = leave_one_out(lambda keep: _of_means([p if len(p) == 1 else p[keep] for p in parts], combine), blocks)
    return spread(torch.tensor(left_out, dtype=torch.float64))


def _of_means(parts: Sequence[Tensor], combine: Callable[..., float | Tensor]) -> float:
    return float(combine(*(part.mean(0) for part in parts)))
