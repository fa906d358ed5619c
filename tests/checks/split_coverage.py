"""How often the intervals of the split of A, and of the floors of one view, hold the truth, from few random rows.

python -m tests.checks.split_coverage [TRIALS] [ROWS]       the figures of dev/LOG.md, two minutes of one core
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from stabledllm.gradient.floor import gradient_floor
from stabledllm.gradient.mask_split import split_masks
from stabledllm.gradient.nested_masks import nested_masks
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.methods import Method
from stabledllm.stats.estimate import Estimate
from tests.checks.gradients import exact_floors
from tests.checks.mask_split import exact_parts, least_of_each_class, mixed_row
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, ToyRow, toy_row

KINDS = [mixed_row(4, 0), toy_row(3, 1), mixed_row(6, 2)]
EPS, POPULATION = 0.1, 960
PARTS = ("count", "targets", "context")

Ends = tuple[float, float]


def truth(kinds: Sequence[ToyRow], edges: np.ndarray) -> dict[str, float]:
    """What every figure estimates, by enumeration; the least and the floors depend on the cells of t."""
    parts = {name: float(np.mean([exact_parts(row, EPS)[name] for row in kinds])) for name in PARTS}
    shares = {f"share_of_{name}": value / sum(parts.values()) for name, value in parts.items()}
    floors = {f"floor_{name}": value for name, value in exact_floors(Setting(eps=EPS), kinds, edges).items()}
    return parts | shares | least_of_each_class(kinds, EPS, edges) | floors


def measured(rows: int, seed: int) -> tuple[dict[str, Estimate], np.ndarray]:
    """The figures of so many rows, and the edges of the cells of t."""
    meter = ToyGradients(KINDS, eps=EPS, n_rows=POPULATION)
    profile = gradient_profile(meter, Method.parse("fixedcount"), rows=rows, rates=4, masks=2, seed=seed)
    split, floor = split_masks(nested_masks(meter, profile, seed)), gradient_floor(profile)
    found = vars(split) | {f"floor_{name}": value for name, value in vars(floor).items()}
    return found, profile.edges.numpy()


def splits_and_truths(trials: int, rows: int) -> list[tuple[dict[str, Estimate], dict[str, float]]]:
    """So many measurements, each with what its figures estimate."""
    found = [measured(rows, seed) for seed in range(trials)]
    return [(figures, truth(KINDS, edges)) for figures, edges in found]


def of_student(found: Estimate) -> Ends:
    """Student's interval, whatever the estimate's own."""
    return replace(found, ends=None).interval()


def coverage(
    found: Sequence[tuple[dict[str, Estimate], dict[str, float]]], ends: Callable[[Estimate], Ends] = Estimate.interval
) -> dict[str, dict[str, int]]:
    """Of each figure the number of intervals that hold the truth, that lie below or above it, and that are unknown."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("held", "below", "above", "none"), 0))
    for figures, exact in found:
        for name, value in exact.items():
            low, high = ends(figures[name])
            unknown = math.isnan(low + high)
            counts[name]["none" if unknown else "below" if high < value else "above" if low > value else "held"] += 1
    return counts


def main(trials: int = 200, rows: int = 12) -> None:
    found = splits_and_truths(trials, rows)
    plain = coverage(found, of_student)
    print(f"share of {trials} intervals from {rows} rows that hold the truth: of each form, and of Student's")
    for name, counts in coverage(found).items():
        print(f"{name}: {counts['held'] / trials:.3f} {counts}, {plain[name]['held'] / trials:.3f} {plain[name]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
