"""Statistics over seeds; the intervals are Student's, which are wide for few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy import special  # scipy.stats would take a second to import

from stabledllm.experiment.spread import paired_differences, sd_interval, sd_ratio, share_interval, values_of
from stabledllm.likelihood.holm import holm
from stabledllm.reports.labels import LOWER_IS_BETTER
from stabledllm.stats.estimate import student


def summarise(runs: Sequence[dict], baselines: Sequence[str]) -> list[dict]:
    """The ``summary`` of ``results.json``: one entry per method and metric.

    ``ci_low`` and ``ci_high`` are a 95 % interval for the mean over seeds, ``sd_ci_low`` and ``sd_ci_high`` one for the
    sd; ``sd_versus_standard`` is the ratio of sds with its own interval. ``versus_standard`` is the paired difference
    (method minus Standard) over the seeds that both finished, with a paired t test; ``p_holm`` is its p value corrected
    for the number of methods compared. Values are null where there are fewer than 2 seeds.

    All of these are computed from the ``n`` runs that have the metric. ``n_diverged`` of the method's runs diverged and
    do not have it; ``diverged_share`` is their share of all runs with its 95 % interval. Where a run of a method
    diverged, its worst run beats nothing.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    metrics = [m for m in sorted(LOWER_IS_BETTER) if any(values_of(runs, method, m) for method in methods)]
    entries = [_entry(runs, method, metric, baselines) for method in methods for metric in metrics]
    for metric in metrics:
        compared = [e["versus_standard"] for e in entries if e["metric"] == metric and e["versus_standard"]]
        for versus, p in zip(compared, holm([v["p_value"] for v in compared]), strict=True):
            versus["p_holm"] = p
    return entries


def diverged_share(runs: Sequence[dict], method: str) -> tuple[int, dict]:
    """The number of a method's runs that diverged, and their share of its runs with its 95 % interval."""
    mine = [run for run in runs if run["method"] == method]
    count = sum(run.get("status") == "diverged" for run in mine)
    low, high = share_interval(count, len(mine))
    return count, {"value": count / len(mine), "ci_low": low, "ci_high": high, "n": len(mine)}


def _entry(runs: Sequence[dict], method: str, metric: str, baselines: Sequence[str]) -> dict:
    values = values_of(runs, method, metric)
    low, high = t_interval(list(values.values()))
    standard = values_of(runs, "standard", metric)
    sd_low, sd_high = sd_interval(list(values.values()))
    diverged, share = diverged_share(runs, method)
    return {
        "method": method,
        "metric": metric,
        "n": len(values),
        "n_diverged": diverged,
        "diverged_share": share,
        "mean": mean(values.values()) if values else None,
        "sd": stdev(values.values()) if len(values) > 1 else None,
        "sd_ci_low": sd_low,
        "sd_ci_high": sd_high,
        "ci_low": low,
        "ci_high": high,
        "versus_standard": None if method == "standard" else paired(values, standard),
        "sd_versus_standard": None if method == "standard" else sd_ratio(values, standard),
        "worst_beats_best_baseline": _worst_beats_best(runs, method, metric, baselines),
    }


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % Student interval of a mean; (None, None) for fewer than 2 unlike values: equal ones show no spread."""
    if len(values) < 2 or not stdev(values):
        return None, None
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def paired(values: dict[int, float], standard: dict[int, float]) -> dict | None:
    """The difference from Standard over common seeds, with a 95 % interval and the p value of a paired t test."""
    differences = paired_differences(values, standard)
    if not differences:
        return None
    low, high = t_interval(differences)
    p_value = None
    if len(differences) > 1:
        error = stdev(differences) / math.sqrt(len(differences))
        size = abs(mean(differences))
        if error:
            p_value = float(2 * special.stdtr(len(differences) - 1, -size / error))
        elif not size:  # others that do not vary tell no chance
            p_value = 1.0
    return {"difference": mean(differences), "ci_low": low, "ci_high": high, "p_value": p_value}


def _worst_beats_best(runs: Sequence[dict], method: str, metric: str, baselines: Sequence[str]) -> bool | None:
    """Whether the method's worst run beats the best run of any baseline; None for a baseline itself.

    A diverged run is worse than any.
    """
    others = [v for b in baselines for v in values_of(runs, b, metric).values()]
    mine = list(values_of(runs, method, metric).values())
    if method in baselines or not others or not mine:
        return None
    if diverged_share(runs, method)[0]:
        return False
    return max(mine) < min(others) if LOWER_IS_BETTER[metric] else min(mine) > max(others)
