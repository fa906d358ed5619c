"""What A of the gradient is made of, by listing every mask: the split's definition, without the library.

Legend: S masks, P tokens, F parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.oracle import Setting, ToyRow, all_masks, count_coefficient, panels, toy_row


def mixed_row(size: int, seed: int) -> ToyRow:
    """The toy's gradients, with as much again that depends on the whole mask: most of A is of the context then."""
    table = toy_row(size, seed).table
    return ToyRow(table + np.random.default_rng([size, seed]).normal(0.0, 0.4, table.shape))


def masked_gradients(row: ToyRow, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indicators (S, P) and ``sum_M grad CE_i`` (S, F) of all S masks of k tokens."""
    masks = all_masks(row.size)
    here = masks.sum(1) == k
    return masks[here].astype(float), row.masked_sums[here, 1:]


def of_count(row: ToyRow, k: int) -> tuple[np.ndarray, float, float]:
    """The mean of ``G_M`` over all masks of k tokens, its variance, and that of its best sum over single tokens."""
    member, value = masked_gradients(row, k)
    fitted = member @ np.linalg.lstsq(member, value, rcond=None)[0]
    return value.mean(0), value.var(0).sum(), fitted.var(0).sum()


def exact_parts(row: ToyRow, eps: float, power: float = 0) -> dict[str, float]:
    """Count, targets and context of A, and B, of one row, by listing masks and quadrature over t."""
    return exact_parts_under(Setting(eps=eps, power=power), row)


def exact_parts_under(setting: Setting, row: ToyRow) -> dict[str, float]:
    """The same under any objective: its mask ratios, power and constant factor are those of the setting."""
    t, dt = panels(setting.kinks(row.size), 0.0, 1.0)
    p, counts = setting.p_mask(t), np.arange(1, row.size + 1)
    law = np.array([math.comb(row.size, k) * p**k * (1 - p) ** (row.size - k) for k in counts])
    weight = setting.scale * p ** (setting.power - 1) / row.size
    mean, variance, additive = (np.array(each) for each in zip(*(of_count(row, k) for k in counts), strict=True))
    given_rate = law.T @ mean * weight[:, None]
    square = law * weight**2 @ dt
    return {
        "count": square @ (mean**2).sum(1) - dt @ (given_rate**2).sum(1),
        "targets": square @ additive,
        "context": square @ (variance - additive),
        "rate": dt @ (given_rate**2).sum(1) - ((dt @ given_rate) ** 2).sum(),
    }


def by_cell(row: ToyRow, eps: float, edges: np.ndarray) -> dict[str, np.ndarray]:
    """What decides the least noise, by enumeration: means over each cell of t under exact counts."""
    counts, setting = np.arange(1, row.size + 1), Setting(eps=eps)
    c = np.array([count_coefficient(setting, row.size, k) for k in counts])
    mean, variance, additive = (np.array(each) for each in zip(*(of_count(row, k) for k in counts), strict=True))
    context = c**2 * (variance - additive)
    of_count_k = {
        "one_view": c**2 * variance,
        "context": context,
        "in_partition": context * counts / row.size,
        "views": row.size / counts,
        "mean": c[:, None] * mean,
    }
    fine = (np.arange(60_000) + 0.5) / 60_000
    k, cell = np.ceil(fine * row.size).astype(int) - 1, np.searchsorted(edges, fine) - 1
    cells = range(len(edges) - 1)
    return {name: np.array([each[k[cell == b]].mean(0) for b in cells]) for name, each in of_count_k.items()}


def _over_rows(kinds: Sequence[ToyRow], eps: float, edges: np.ndarray) -> tuple[dict[str, np.ndarray], float, float]:
    """The means over kinds of row of :func:`by_cell`, C, and the noise of Standard."""
    rows, width = [by_cell(row, eps, edges) for row in kinds], np.diff(edges)
    cells = {name: np.mean([row[name] for row in rows], 0) for name in rows[0]}
    each = np.array([width @ row["mean"] for row in rows])
    data = float(((each - each.mean(0)) ** 2).sum(1).mean())
    cells["own_mean_square"] = np.mean([(row["mean"] ** 2).sum(1) for row in rows], 0)
    return cells, data, float(np.mean([sum(exact_parts(row, eps).values()) for row in kinds]))


def least_of_each_class(kinds: Sequence[ToyRow], eps: float, edges: np.ndarray) -> dict[str, float]:
    """The least noise of each class of estimator over Standard's, for densities that are constant in the cells."""
    (cells, data, standard), width = _over_rows(kinds, eps, edges), np.diff(edges)
    own = cells["in_partition"] + cells["own_mean_square"] - (cells["mean"] ** 2).sum(1)
    least = {
        "least_one_view": (np.sqrt(cells["one_view"]) @ width) ** 2,
        "least_balanced": (np.sqrt(cells["context"].clip(min=0)) @ width) ** 2,  # rounding makes zeros negative
        "least_partition": (np.sqrt(cells["views"] * own) @ width) ** 2 - data,
    }
    return {name: float(value) / standard for name, value in least.items()}


def data_over_standard(kinds: Sequence[ToyRow], eps: float, edges: np.ndarray) -> float:
    """C over Standard's noise."""
    _, data, standard = _over_rows(kinds, eps, edges)
    return data / standard
