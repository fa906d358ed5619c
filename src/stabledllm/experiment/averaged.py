"""Statistics over seeds of the averages of the weights, beside the last weights of the same runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from stabledllm.experiment.spread import sd_interval, sd_ratio, values_of
from stabledllm.experiment.summary import paired, t_interval
from stabledllm.likelihood.holm import holm
from stabledllm.reports.labels import LOWER_IS_BETTER


def summarise_averages(runs: Sequence[dict]) -> list[dict]:
    """The ``averages`` of ``results.json``: one entry per metric, method and average; empty where no run kept any.

    ``mean``, ``sd`` and their intervals are those of ``summary``, of the averages. ``versus_last`` is the difference
    from the last weights of the same runs, paired by seed, and ``sd_versus_last`` the ratio of the sds over seeds, with
    the interval that takes account of the pairs. ``versus_standard`` and ``sd_versus_standard`` compare the same
    average of two methods. ``p_holm`` in ``versus_last`` is corrected for all averages of all methods of the metric.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    names = list(dict.fromkeys(name for run in runs for name in run.get("averages") or {}))
    entries = []
    for metric in sorted(LOWER_IS_BETTER):
        found = [_entry(runs, method, name, metric) for method in methods for name in names]
        found = [entry for entry in found if entry is not None]
        compared = [entry["versus_last"] for entry in found if entry["versus_last"]]
        for versus, p in zip(compared, holm([v["p_value"] for v in compared]), strict=True):
            versus["p_holm"] = p
        entries += found
    return entries


def _entry(runs: Sequence[dict], method: str, name: str, metric: str) -> dict | None:
    averaged = [run | {"metrics": _metrics(run, name)} for run in runs]
    values, last = values_of(averaged, method, metric), values_of(runs, method, metric)
    if not values:
        return None
    standard = values_of(averaged, "standard", metric) if method != "standard" else {}
    own = list(values.values())
    (low, high), (sd_low, sd_high) = t_interval(own), sd_interval(own)
    return {
        "method": method,
        "average": name,
        "metric": metric,
        "n": len(own),
        "mean": mean(own),
        "sd": stdev(own) if len(own) > 1 else None,
        "ci_low": low,
        "ci_high": high,
        "sd_ci_low": sd_low,
        "sd_ci_high": sd_high,
        "versus_last": paired(values, last),
        "sd_versus_last": sd_ratio(values, last),
        "versus_standard": paired(values, standard),
        "sd_versus_standard": sd_ratio(values, standard),
    }


def _metrics(run: dict, name: str) -> dict:
    return ((run.get("averages") or {}).get(name) or {}).get("metrics") or {}
