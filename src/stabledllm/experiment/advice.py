"""What to do after an experiment: switch to a method, stay with Standard, or run so many more seeds."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.experiment.power import POWER, seeds_from_runs
from stabledllm.experiment.spread import paired_differences, values_of
from stabledllm.reports.labels import LOWER_IS_BETTER, metric_name

LEVEL = 0.05
_MOST = 1000
"""Number of seeds from which the number is not said, since nobody would run so many."""


def advice(runs: Sequence[dict], summary: Sequence[dict]) -> list[str]:
    """A sentence for each metric in which methods are compared with Standard."""
    out = []
    for metric in dict.fromkeys(entry["metric"] for entry in summary):
        entries = [e for e in summary if e["metric"] == metric and e.get("versus_standard")]
        if entries and metric in LOWER_IS_BETTER:
            name = metric_name(metric)
            out.append(f"By {name}: {_one_metric(runs, entries, metric)}")
    return out


def _one_metric(runs: Sequence[dict], entries: list[dict], metric: str) -> str:
    sign = -1 if LOWER_IS_BETTER[metric] else 1
    gains = {e["method"]: sign * e["versus_standard"]["difference"] for e in entries}
    best = max(gains, key=gains.get)
    told = {e["method"]: _is_told(e["versus_standard"]) for e in entries}
    better = [method for method, gain in gains.items() if told[method] and gain > 0]
    if better:
        switch = max(better, key=gains.get)
        versus = next(e["versus_standard"] for e in entries if e["method"] == switch)
        ends = f"{versus['ci_low']:+.3g} to {versus['ci_high']:+.3g}"
        return f"switch to {switch}, {versus['difference']:+.3g} ({ends}) against Standard."
    if all(told.values()):
        return "stay with Standard; every other method is worse."
    if gains[best] <= 0:
        return "stay with Standard; no other method has a better mean."
    values, standard = (values_of(runs, method, metric) for method in (best, "standard"))
    differences = paired_differences(values, standard)
    if len(differences) < 2:
        return "one seed tells no methods apart; run more, such as seeds=[1,2,3,4], and stay with Standard until then."
    if len(set(differences)) < 2:
        return (
            f"stay with Standard; {best} is better by the same {gains[best]:.3g} for every seed: train for more steps."
        )
    return _more_seeds(best, gains[best], values, standard, len(entries))


def _is_told(versus: dict) -> bool:
    """Whether a difference is significant, by its p value corrected for the number of methods."""
    p = versus.get("p_holm", versus.get("p_value"))
    return p is not None and p < LEVEL


def _more_seeds(method: str, gain: float, values: dict[int, float], standard: dict[int, float], methods: int) -> str:
    """How many more seeds would show the difference of the best method, if it is as large as it seems."""
    found = seeds_from_runs(values, standard, gain, wanted=POWER, methods=methods)
    so_far = f"{method} is better by {gain:.3g} over {found['n']} seeds, which may be chance"
    needed, high = found["seeds"], found["seeds_high"]
    if needed is None or needed > _MOST:
        return f"stay with Standard; {so_far}, and over {_MOST:,} seeds would be needed to show it."
    more = max(needed - found["n"], 1)
    most = f"{high:,}" if high and high <= _MOST else f"over {_MOST:,}"
    return (
        f"not settled; {so_far}. If it is true, about {needed} seeds show it, {more} more than there are (at most "
        f"{most}, as so few seeds tell their spread; {POWER:.0%} power). Until then stay with Standard."
    )
