"""Made-up runs over a grid of learning rates, whose final losses follow known curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

RATES = [0.0005, 0.001, 0.002, 0.004, 0.008]


def curve(steep: float, best: float = 0.1, rates: Sequence[float] = RATES) -> ndarray:
    """A mean loss with its minimum at 0.002 that rises by ``steep`` for the square of each doubling, half below it."""
    x = np.log2(np.array(rates) / 0.002)
    return best + np.where(x < 0, 0.5 * steep, steep) * x**2


def losses(means: ndarray, seeds: int, *, shared: float = 0.002, own: float = 0.001, seed: int = 0) -> list[ndarray]:
    """For each mean curve (methods x rates) losses of shape (seeds, rates), which share a part of their noise."""
    generator = np.random.default_rng(seed)
    common = shared * generator.standard_normal((seeds, 1))
    return [mean + common + own * generator.standard_normal((seeds, len(mean))) for mean in means]


def run(method: str, rate: float, seed: int, loss: float, *, norm: float | None = None, outliers: int = 0) -> dict:
    """A stored run; an infinite loss is one that diverged."""
    out = {"method": method, "seed": seed, "learning_rate": rate, "outlier_steps": outliers, "steps": 300}
    out |= {"forward_passes": 4800, "probe_forward_passes": 0, "seconds": 9.0, "history": []}
    out |= {} if norm is None else {"max_grad_norm": norm}
    if np.isinf(loss):
        return out | {"metrics": {}, "status": "diverged", "diverged": {"step": 12, "what": "the loss was not finite"}}
    return out | {"metrics": {"validation_nll": {"value": float(loss), "stderr": 0.01}}, "status": "finished"}


def runs_of(method: str, nll_SJ: ndarray, *, norm: float | None = None, rates: Sequence[float] = RATES) -> list[dict]:
    """The runs of a method whose losses are given for seeds 1, 2, ... at every rate."""
    return [
        run(method, rate, seed, loss, norm=norm, outliers=int(rate > 0.003) * seed)
        for seed, row in enumerate(nll_SJ, 1)
        for rate, loss in zip(rates, row, strict=True)
    ]
