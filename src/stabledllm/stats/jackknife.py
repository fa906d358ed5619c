"""Delete-one-row jackknife: rows are the independent units of every estimate here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabledllm.stats.estimate import Estimate

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
    (found,) = jackknives(lambda keep: (statistic(keep),), rows, (unit,))
    return found


def jackknives(
    statistics: Callable[[Tensor], Sequence[float]], rows: int, units: Sequence[str]
) -> tuple[Estimate, ...]:
    """The same of several statistics that are worked out together."""
    index = torch.arange(rows)
    values = [float(v) for v in statistics(index)]
    if rows < LEAST_ROWS:
        return tuple(Estimate(value=v, stderr=math.nan, n=rows, unit=u) for v, u in zip(values, units, strict=True))
    each = [[float(v) for v in statistics(index[index != i])] for i in range(rows)]
    left_out = torch.tensor(each, dtype=torch.float64)
    return tuple(
        Estimate(value=v, stderr=spread(left_out[:, k]), n=rows, unit=u)
        for k, (v, u) in enumerate(zip(values, units, strict=True))
    )


def spread(left_out: Tensor) -> float:
    """Standard error from the leave-one-out values, shape (rows,)."""
    n = len(left_out)
    return float(((left_out - left_out.mean()) ** 2).sum() * (n - 1) / n) ** 0.5
