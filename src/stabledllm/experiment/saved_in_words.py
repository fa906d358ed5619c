"""The sentences on how much of Standard's compute each method needs."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.reports.labels import metric_name
from stabledllm.reports.saved import in_words


def sentences(metrics: Sequence[dict]) -> list[str]:
    """For each metric a sentence on what was read off what, then one on each group of methods."""
    return [sentence for entry in metrics for sentence in _of_metric(entry)]


def _of_metric(entry: dict) -> list[str]:
    name, used = metric_name(entry["metric"]), [point for point in entry["curve"] if point["used"]]
    out = []
    if len(used) < len(entry["curve"]):
        after = f"{used[-1]['multiple']:g} times its forwards"
        out.append(f"Standard's {name} gets worse again after {after}: what is longer is left out, as it buys nothing.")
    if len(used) < 2 or not entry["improves"]:
        budgets = " to ".join(f"{point['multiple']:g}" for point in (used[0], used[-1])[: len(used)])
        out.append(
            f"In {name}, Standard is not told to gain from more forwards ({budgets} times its own): no compute can be "
            f"read off it."
        )
        return out
    groups: dict[str, list[str]] = {}
    for method in entry["methods"]:
        groups.setdefault(_group(method), []).append(f"{method['method']} {in_words(method)}{_probe(method)}")
    for what in (_LESS, _MORE, _UNCLEAR, _UNKNOWN):
        if what in groups:
            out.append(f"{what.format(name=name)}: {_listed(groups[what])}.")
    return out


_LESS = "Share of Standard's forwards needed to end at the same {name}, less than all"
_MORE = "More than all of Standard's forwards for the same {name}"
_UNCLEAR = "Not told from Standard in the forwards needed for the same {name}"
_UNKNOWN = "Share of Standard's forwards for the same {name}, without an interval, which takes two seeds"


def _group(method: dict) -> str:
    """Whether a method needs less than Standard, or more, by its interval."""
    if not method["known"]:
        return _UNKNOWN
    if method["ci_high"] is not None and method["ci_high"] < 1:
        return _LESS
    return _MORE if method["ci_low"] is not None and method["ci_low"] > 1 else _UNCLEAR


def _probe(method: dict) -> str:
    """What a method needs with its probe counted in; empty for one without."""
    probe, value = method["probe_forward_passes"], method["value"]
    if not probe or value is None:
        return ""
    return f", with the {probe:,} of its probe {value * (1 + probe / method['forward_passes']):.2f}"


def _listed(items: list[str]) -> str:
    return "; ".join(items)
