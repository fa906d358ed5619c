"""Delete-one-row jackknife: rows are the independent units of every estimate here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate

T = TypeVar("T")
LEAST_ROWS = 4
"""With fewer rows the error is NaN, not a number."""


def jackknife(statistic: Callable[[Tensor], float], rows: int, unit: str) -> Estimate:
    """The statistic on all rows with its jackknife standard error.

    Args:
        statistic: takes the indices of the rows to use, shape (kept,).
        rows: number of rows.

    >>> x = torch.tensor([1.0, 2.0, 4.0, 5.0])
    >>> print(jackknife(lambda keep: x[keep].mean(), 4, "nats"))
    3 ± 0.91 nats (n=4)
    """
    (estimate,) = jackknives(lambda keep: (statistic(keep),), rows, (unit,))
    return estimate


def jackknives(
    statistics: Callable[[Tensor], Sequence[float]], rows: int, units: Sequence[str]
) -> tuple[Estimate, ...]:
    """The same of several statistics that are worked out together."""
    values = [float(v) for v in statistics(torch.arange(rows))]
    errors = [math.nan] * len(values)
    if rows >= LEAST_ROWS:
        each = leave_one_out(lambda keep: [float(v) for v in statistics(keep)], rows)
        errors = [spread(of_one) for of_one in torch.tensor(each, dtype=torch.float64).T]
    return tuple(Estimate(value=v, stderr=e, n=rows, unit=u) for v, e, u in zip(values, errors, units, strict=True))


def leave_one_out(statistic: Callable[[Tensor], T], rows: int) -> list[T]:
    """The statistic without each row in turn."""
    index = torch.arange(rows)
    return [statistic(index[index != i]) for i in range(rows)]


def variance(left_out: Tensor) -> Tensor:
    """Squared standard errors from leave-one-out values, over the first dimension."""
    n = len(left_out)
    return ((left_out - left_out.mean(0)) ** 2).sum(0) * (n - 1) / n


def spread(left_out: Tensor) -> float:
    """Standard error from the leave-one-out values, shape (rows,)."""
    return float(variance(left_out)) ** 0.5
