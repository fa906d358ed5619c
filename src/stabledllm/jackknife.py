"""Delete-one-row jackknife: rows are the independent units of every estimate here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stabledllm.estimate import Estimate

LEAST_ROWS = 4
"""With fewer rows the error is NaN, not a number."""


def jackknife(statistic: Callable[[Tensor], float], rows: int, unit: str) -> Estimate:
    """The statistic on all rows with its jackknife standard error.

    Args:
        statistic: takes the indices of the rows to use, shape (kept,).
        rows: number of rows.
    """
    index = torch.arange(rows)
    value = float(statistic(index))
    if rows < LEAST_ROWS:
        return Estimate(value=value, stderr=math.nan, n=rows, unit=unit)
    left_out = torch.tensor([statistic(index[index != i]) for i in range(rows)], dtype=torch.float64)
    return Estimate(value=value, stderr=spread(left_out), n=rows, unit=unit)


def spread(left_out: Tensor) -> float:
    """Standard error from the leave-one-out values, shape (rows,)."""
    n = len(left_out)
    return float(((left_out - left_out.mean()) ** 2).sum() * (n - 1) / n) ** 0.5


def pair_square(values: Tensor) -> float:
    """Unbiased square of the mean of independent values: the mean product of different ones."""
    n = len(values)
    return float((values.sum() ** 2 - (values**2).sum()) / (n * (n - 1)))
