"""The runs' values over seeds and their spread, with intervals under the assumption that values are normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import correlation, stdev

from scipy import special  # scipy.stats would take a second to import

from stabledllm.stats.estimate import student
from stabledllm.stats.intervals import Ratio


def values_of(runs: Sequence[dict], method: str, metric: str) -> dict[int, float]:
    """A method's values of a metric by seed; runs without a finite value, such as diverged ones, are left out."""
    estimates = {run["seed"]: (run.get("metrics") or {}).get(metric) for run in runs if run["method"] == method}
    values = {seed: estimate.get("value") for seed, estimate in estimates.items() if isinstance(estimate, dict)}
    return {seed: float(v) for seed, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def comparable_values(
    runs: Sequence[dict], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, dict[int, float]]]:
    """For each metric that Standard and another method have over two common seeds: each method's values by seed.

    Methods whose differences from Standard are the same for every seed are left out, since no spread is known.
    """
    out = {}
    for metric in metrics:
        every = {name: values_of(runs, name, metric) for name in methods}
        standard = every.get("standard", {})
        vary = {name for name, own in every.items() if len(set(paired_differences(own, standard))) > 1}
        others = {name: every[name] for name in methods if name in vary and name != "standard"}
        if others:
            out[metric] = {"standard": standard} | others
    return out


def paired_differences(values: Mapping[int, float], standard: Mapping[int, float]) -> list[float]:
    """The method's value minus Standard's for every seed that both have.

    They are rounded to 12 decimals: what differs by rounding alone does not differ.
    """
    return [round(values[seed] - standard[seed], 12) for seed in values if seed in standard]


def share_interval(count: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share of n independent runs (Clopper and Pearson, 1934)."""
    low = float(special.betaincinv(count, n - count + 1, 0.025)) if count else 0.0
    high = float(special.betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return low, high


def sd_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a standard deviation, from chi-square; (None, None) for fewer than 2 unlike values."""
    n = len(values)
    if n < 2 or not (sd := stdev(values)):
        return None, None
    return tuple(sd * math.sqrt((n - 1) / float(2 * special.gammaincinv((n - 1) / 2, q))) for q in (0.975, 0.025))


def sd_ratio(values: dict[int, float], standard: dict[int, float]) -> dict | None:
    """The sd over common seeds divided by Standard's, with a 95 % interval; None for fewer than 3 common seeds.

    The two share seeds and are correlated, so the interval inverts the Pitman-Morgan test (Pitman 1939,
    Morgan 1939), exact for a bivariate normal pair and equal to the F interval up to order 1/n without correlation.
    """
    seeds = [seed for seed in values if seed in standard]
    n = len(seeds)
    if n < 3:
        return None
    mine, theirs = ([of[seed] for seed in seeds] for of in (values, standard))
    if not stdev(mine) or not stdev(theirs):
        return None
    ratio, r = stdev(mine) / stdev(theirs), correlation(mine, theirs)
    k = 1 + 2 * max(1 - r**2, 0.0) * student(n - 2) ** 2 / (n - 2)
    widen = math.sqrt(k + math.sqrt(k**2 - 1))
    return Ratio(ratio, ratio / widen, ratio * widen).as_dict()
