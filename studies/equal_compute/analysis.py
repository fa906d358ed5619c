"""Statistics of the study: differences between methods over paired seeds, spreads, and what predicts the result."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from scipy import stats

from stabledllm.experiment.spread import sd_ratio
from stabledllm.experiment.summary import paired

METRICS = ("validation_nll", "accuracy")
LEAST_SEEDS = 6
"""Methods with fewer seeds are left out of correlations."""


def values(runs: Sequence[dict], method: str, metric: str) -> dict[int, float]:
    """Seed to final value."""
    return {r["seed"]: r["metrics"][metric]["value"] for r in runs if r["method"] == method and metric in r["metrics"]}


def versus(runs: Sequence[dict], method: str, other: str, metric: str) -> dict | None:
    """Paired difference (method minus other) and ratio of sds over common seeds, each with a 95 % interval."""
    mine, theirs = values(runs, method, metric), values(runs, other, metric)
    found = paired(mine, theirs)
    common = [seed for seed in mine if seed in theirs]
    return None if found is None else found | {"n": len(common), "sd_ratio": sd_ratio(mine, theirs)}


def table_rows(runs: Sequence[dict]) -> list[dict]:
    """One entry a method, the least mean NLL first."""
    methods = list(dict.fromkeys(r["method"] for r in runs))
    rows = []
    for method in methods:
        entry = {"method": method}
        for metric in METRICS:
            found = list(values(runs, method, metric).values())
            if not found:
                entry[metric] = entry[f"{metric}_versus_standard"] = None
                continue
            entry[metric] = {"n": len(found), "mean": mean(found), "sd": stdev(found) if len(found) > 1 else None}
            against = None if method == "standard" else versus(runs, method, "standard", metric)
            entry[f"{metric}_versus_standard"] = against
        rows.append(entry)
    return sorted(rows, key=lambda e: e["validation_nll"]["mean"])


def rank_correlation(
    noise: dict[str, float], runs: Sequence[dict], metric: str = "validation_nll", draws: int = 4000, seed: int = 0
) -> dict | None:
    """Spearman's correlation over methods between a noise at equal compute and the final metric.

    95 % interval: percentile bootstrap over seeds and methods together, so that neither the luck of the seeds nor
    the choice of methods is taken for granted. None for fewer than 4 methods with at least LEAST_SEEDS seeds.
    """
    names = [m for m in noise if len(values(runs, m, metric)) >= LEAST_SEEDS]
    seeds = sorted(set.intersection(*(set(values(runs, m, metric)) for m in names))) if names else []
    if len(names) < 4 or len(seeds) < 2:
        return None
    table = np.array([[values(runs, m, metric)[s] for s in seeds] for m in names])
    level = np.array([noise[m] for m in names])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        rows, columns = rng.integers(len(names), size=len(names)), rng.integers(len(seeds), size=len(seeds))
        if len(set(rows)) > 2:
            drawn.append(stats.spearmanr(level[rows], table[rows][:, columns].mean(1)).statistic)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    value = stats.spearmanr(level, table.mean(1)).statistic
    counts = {"methods": len(names), "seeds": len(seeds)}
    return {"value": float(value), "ci_low": float(low), "ci_high": float(high)} | counts
