"""What A of the gradient is made of, by listing every mask: the split's definition, without the library.

Legend: S masks, P tokens, F parameters.
"""

from __future__ import annotations

import math

import numpy as np

from tests.oracle import Setting, ToyRow, all_masks, panels, toy_row


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
