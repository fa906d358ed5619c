"""Sentences on what so few seeds can and cannot show, computed from the runs; values are taken to be normal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from scipy import special  # scipy.stats would take a second to import

from stabledllm.experiment.spread import paired_differences, share_interval, values_of
from stabledllm.reports.labels import metric_name


def sd_ratio_needed(seeds: int) -> float:
    """The smallest ratio of two sds, each over ``seeds`` seeds, that a two-sided F test at 5 % tells from 1."""
    return math.sqrt(float(special.fdtri(seeds - 1, seeds - 1, 0.975)))


def statements(runs: Sequence[dict], summary: Sequence[dict]) -> list[str]:
    """Sentences on which runs diverged and, for each metric, on the least differences and ratios of sds that show."""
    out = _diverged(runs)
    for metric in dict.fromkeys(entry["metric"] for entry in summary):
        name = metric_name(metric)
        standard = values_of(runs, "standard", metric)
        methods = [e["method"] for e in summary if e["metric"] == metric and e["method"] != "standard"]
        every = [paired_differences(values_of(runs, method, metric), standard) for method in methods]
        compared = [differences for differences in every if len(differences) > 1]
        if not compared:
            continue
        counts = {len(differences) for differences in compared}
        fewest, most = min(counts), max(counts)
        seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
        least = [_least_seen(differences, len(compared)) for differences in compared]
        if alike := sum(not difference > 0 for difference in least):
            out.append(_no_spread(name, seeds, alike, len(least)))
            least = [difference for difference in least if difference > 0]
        if not least:
            continue
        low, high = f"{min(least):.2g}", f"{max(least):.2g}"
        spread = low if low == high else f"{low} to {high}, by method,"
        many = f", {len(compared)} methods compared" if len(compared) > 1 else ""
        out.append(
            f"In {name}, with {seeds} seeds{many}: a mean difference from Standard below {spread} cannot be told from "
            f"0, and a ratio of sds below {sd_ratio_needed(fewest):.2g} cannot be told from 1 (5 %, two-sided)."
        )
    return out


def _no_spread(name: str, seeds: str, alike: int, methods: int) -> str:
    """The sentence on methods whose difference from Standard is one number for every seed, so without an error."""
    whose = "each method" if alike == methods else f"{alike} of {methods} methods"
    return (
        f"In {name}, with {seeds} seeds: {whose} differed from Standard by the same number for every seed, as runs do "
        f"that hardly learn; what a difference must be to be told from 0 is not known. Train for more steps."
    )


def _diverged(runs: Sequence[dict]) -> list[str]:
    """A sentence on how many runs of each method diverged and what that does to the figures; none where none did."""
    if not any(run.get("status") == "diverged" for run in runs):
        return []
    counts = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run.get("status") == "diverged" for run in runs if run["method"] == method]
        low, high = share_interval(sum(mine), len(mine))
        counts.append(f"{method} {sum(mine)} of {len(mine)} (95 % {low:.0%} to {high:.0%})")
    return [
        f"Runs that diverged: {', '.join(counts)}. They have no metrics: means, sds and tests are of the other runs "
        f"alone, so that a method that lost its worst runs looks better there than it is."
    ]


def _least_seen(differences: list[float], methods: int) -> float:
    """The least mean difference that Holm's strictest step rejects, given how the differences vary."""
    n = len(differences)
    return float(special.stdtrit(n - 1, 1 - 0.025 / methods)) * stdev(differences) / math.sqrt(n)
