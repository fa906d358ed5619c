"""The delete-one jackknife over rows, the independent observations of every estimate here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate

T = TypeVar("T")
LEAST_ROWS = 4
"""With fewer rows the standard error is NaN."""


def jackknife(statistic: Callable[[Tensor], float], rows: int, unit: str) -> Estimate:
    """The value of the statistic on all rows, with its jackknife standard error.

    Args:
        statistic: takes the indices of the rows to use, a vector.
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
    """The same as :func:`jackknife`, for several statistics that are computed together.

    >>> x = torch.tensor([1.0, 2.0, 4.0, 5.0])
    >>> [estimate.value for estimate in jackknives(lambda keep: (x[keep].mean(), x[keep].max()), 4, ("nats", "nats"))]
    [3.0, 5.0]
    """
    values = [float(v) for v in statistics(torch.arange(rows))]
    errors = [math.nan] * len(values)
    if rows >= LEAST_ROWS:
        left_out = leave_one_out(lambda keep: [float(v) for v in statistics(keep)], rows)
        errors = [spread(column) for column in torch.tensor(left_out, dtype=torch.float64).T]
    return tuple(Estimate(value=v, stderr=e, n=rows, unit=u) for v, e, u in zip(values, errors, units, strict=True))


def leave_one_out(statistic: Callable[[Tensor], T], rows: int) -> list[T]:
    """The values of the statistic with each row left out in turn.

    >>> leave_one_out(lambda keep: keep.tolist(), 3)
    [[1, 2], [0, 2], [0, 1]]
    """
    index = torch.arange(rows)
    return [statistic(index[index != i]) for i in range(rows)]


def variance(left_out: Tensor) -> Tensor:
    """The jackknife variance (squared standard error) from leave-one-out values, whose first dimension is the rows.

    >>> variance(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor(3.7500)
    """
    n = len(left_out)
    return ((left_out - left_out.mean(0)) ** 2).sum(0) * (n - 1) / n


def spread(left_out: Tensor) -> float:
    """The jackknife standard error from leave-one-out values, shape (rows,).

    >>> spread(torch.tensor([-1.0, 1.0]))
    1.0
    """
    return float(variance(left_out)) ** 0.5
