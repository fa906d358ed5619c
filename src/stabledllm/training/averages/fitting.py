"""Which mean of stored power-function averages comes nearest to another one, and how near.

EDM2 (arXiv:2312.02696, section 3.2, algorithm 3): every stored average is a known mean of the weights theta_i after
steps i = 1, 2, ...; so is any mean of them. The coefficients x make the profile sum_k x_k w_k as near as possible to
the wanted profile w, by least squares over the steps, under sum_k x_k = 1. EDM2 takes the densities' inner products;
here the profiles are those of the steps, exactly.

With e = sum_k x_k w_k - w, whose sum is 0, the rebuilt average differs from the one that a run would have kept by
sum_i e_i theta_i. So in any norm

    |rebuilt - kept|  <=  mismatch * max_{i,j} |theta_i - theta_j|  +  2^-24 growth * max_k |average_k|,

where ``mismatch`` = sum_i |e_i| / 2 is the share of the weight that lies on wrong steps, and ``growth`` = sum_k |x_k|
what becomes of the rounding of the stored float32 averages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stabledllm.training.averages.rules import Rule

_AT_ONCE = 4096
"""Steps whose profiles are held at the same time."""
_RIDGE = 1e-5
"""What a coefficient costs, against the profiles' distance times the root of the number of steps: large coefficients of
opposite signs would gain nothing that the averages' rounding does not lose."""


@dataclass(frozen=True)
class Fit:
    """The coefficients of the stored averages, which sum to 1; ``mismatch`` and ``growth`` as at the module's head."""

    coefficients: list[float]
    mismatch: float
    growth: float


def fit(stored: Sequence[tuple[Rule, int]], wanted: Rule, steps: int) -> Fit:
    """The coefficients that come nearest to an average after ``steps`` steps.

    Args:
        stored: at least one average, with the number of steps after which it was stored, at most ``steps``.
    """
    *free, last = range(len(stored))
    x = np.ones(1)
    if free:
        # The last coefficient is 1 minus the others, so that every sum over the steps is 1.
        triangle = np.empty((0, len(stored)))
        for rows, target in _profiles(stored, wanted, steps):
            equations = np.column_stack([rows[:, free] - rows[:, [last]], target - rows[:, last]])
            triangle = np.linalg.qr(np.vstack([triangle, equations * steps**0.5]), mode="r")
        small = _RIDGE * np.vstack([np.eye(len(free)), np.ones((1, len(free)))])
        small = np.column_stack([small, [*[0.0] * len(free), _RIDGE]])
        equations = np.vstack([triangle, small])
        others = np.linalg.lstsq(equations[:, :-1], equations[:, -1], rcond=None)[0]
        x = np.append(others, 1 - others.sum())
    mismatch = sum(float(np.abs(rows @ x - target).sum()) for rows, target in _profiles(stored, wanted, steps)) / 2
    return Fit([float(each) for each in x], mismatch, float(np.abs(x).sum()))


def _profiles(stored: Sequence[tuple[Rule, int]], wanted: Rule, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the weights of the steps in the stored averages, (steps, stored), and in the wanted one, (steps,)."""
    for start in range(1, steps + 1, _AT_ONCE):
        some = np.arange(start, min(start + _AT_ONCE, steps + 1), dtype=float)
        yield np.column_stack([rule.profile(some, n) for rule, n in stored]), wanted.profile(some, steps)
