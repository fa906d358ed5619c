"""How often the intervals of the split of A hold the truth, from few rows that are chosen at random.

python -m tests.checks.split_coverage [TRIALS] [ROWS]       the figures of dev/LOG.md, two minutes of one core
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from stabledllm.gradient.mask_split import MaskSplit, split_masks
from stabledllm.gradient.nested_masks import nested_masks
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.methods import Method
from stabledllm.stats.estimate import Estimate
from tests.checks.mask_split import exact_parts, least_of_each_class, mixed_row
from tests.fakes.gradients import ToyGradients
from tests.oracle import ToyRow, toy_row

KINDS = [mixed_row(4, 0), toy_row(3, 1), mixed_row(6, 2)]
EPS, POPULATION = 0.1, 960
PARTS = ("count", "targets", "context")

Ends = tuple[float, float]


def truth(kinds: Sequence[ToyRow], edges: np.ndarray) -> dict[str, float]:
    """What every figure of the split estimates, by enumeration; the least depends on the cells of t."""
    parts = {name: float(np.mean([exact_parts(row, EPS)[name] for row in kinds])) for name in PARTS}
    shares = {f"share_of_{name}": value / sum(parts.values()) for name, value in parts.items()}
    return parts | shares | least_of_each_class(kinds, EPS, edges)


def measured(rows: int, seed: int) -> tuple[MaskSplit, np.ndarray]:
    """A split from so many rows, and the edges of the cells of t."""
    meter = ToyGradients(KINDS, eps=EPS, n_rows=POPULATION)
    profile = gradient_profile(meter, Method.parse("fixedcount"), rows=rows, rates=4, masks=2, seed=seed)
    return split_masks(nested_masks(meter, profile, seed)), profile.edges.numpy()


def coverage(trials: int, rows: int, ends: Callable[[Estimate], Ends] = Estimate.interval) -> dict[str, dict[str, int]]:
    """Of each figure the number of intervals that hold the truth, that lie below or above it, and that are unknown."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("held", "below", "above", "none"), 0))
    for seed in range(trials):
        split, edges = measured(rows, seed)
        for name, exact in truth(KINDS, edges).items():
            low, high = ends(getattr(split, name))
            unknown = math.isnan(low + high)
            place = "none" if unknown else "below" if high < exact else "above" if low > exact else "held"
            found[name][place] += 1
    return found


def main(trials: int = 300, rows: int = 12) -> None:
    for name, found in coverage(trials, rows).items():
        known = trials - found["none"]
        print(f"{name}: {found['held'] / known:.3f} of {known} intervals hold the truth, {found}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
