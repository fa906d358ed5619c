"""How much of Standard's compute each method needs, as stored: in a few words and as tables."""

from __future__ import annotations

import math

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import metric_label, metric_name
from stabledllm.reports.stored import number
from stabledllm.reports.table import Table
from stabledllm.reports.tables import Name


def saved_metrics(results: dict) -> list[dict]:
    """What was read off Standard's curve, metric by metric; nothing where Standard was trained at one budget."""
    return (results.get("compute_saved") or {}).get("metrics") or []


def saved_sentences(results: dict) -> list[str]:
    """The stored sentences on it."""
    return (results.get("compute_saved") or {}).get("sentences") or []


def in_words(share: dict) -> str:
    """A method's share of Standard's forwards with its interval, of which nothing is said beyond the budgets.

    >>> bounds = {"least": 0.5, "most": 1.333, "known": True}
    >>> in_words(bounds | {"value": 0.832, "ci_low": 0.781, "ci_high": 0.893, "side": "inside"})
    '0.83 (0.78 to 0.89)'
    >>> in_words(bounds | {"value": None, "ci_low": None, "ci_high": 0.62, "side": "less"})
    'less than 0.50 (at most 0.62)'
    """
    low, high = number(share.get("ci_low")), number(share.get("ci_high"))
    least, most = (f"{word} {_two(share.get(end))}" for word, end in (("less than", "least"), ("more than", "most")))
    if not share.get("known") and share.get("side") == "inside" and math.isnan(number(share.get("value"))):
        return "not told"  # Standard ends there at every budget
    if not share.get("known"):
        return {"less": least, "more": most}.get(share.get("side"), _two(share.get("value"))) + " (no interval)"
    if math.isnan(low) and math.isnan(high):
        return f"not told ({least} to {most})"
    if share.get("side") == "less":
        return least + (f" (at most {_two(high)})" if _two(high) != _two(share.get("least")) else "")
    if share.get("side") == "more":
        return most + (f" (at least {_two(low)})" if _two(low) != _two(share.get("most")) else "")
    ends = (least if math.isnan(low) else _two(low), most if math.isnan(high) else _two(high))
    return f"{_two(share.get('value'))} ({ends[0]} to {ends[1]})"


def _two(value: object) -> str:
    return fmt.fixed(value, 2)


def saved_table(results: dict, metric: str, name: Name = str) -> Table | None:
    """The table of the share of Standard's forwards, and of its time, that each method needs; None without one."""
    entry = next((one for one in saved_metrics(results) if one["metric"] == metric), None)
    if not entry or not entry["methods"]:
        return None
    rows = [
        (name(m["method"]), in_words(m), _saved(m), _time(m.get("wall_time")), _with_probe(m), fmt.count(m.get("n")))
        for m in entry["methods"]
    ]
    columns = ("method", "needs of Standard's forwards", "saves", "of its time", "with its probe", "seeds")
    note = (
        "The forwards of a run over those after which Standard's mean is the same, with its 95 % interval over common "
        "seeds; read off Standard's runs at other budgets, never beyond them."
    )
    more = (
        "Of its time: that, times the measured seconds a forward over Standard's (steps and evaluation losses). With "
        "its probe: the forwards of fitting p(t) counted in."
    )
    return Table(f"Compute saved, by {metric_name(metric)}", columns, tuple(rows), note, more, answers=3)


def curve_table(entry: dict, name: Name = str) -> Table:
    """The table of Standard's runs at every budget."""
    rows = [
        (
            f"{name('standard')}, {number(point.get('multiple')):g} times its forwards",
            fmt.count(point.get("forward_passes")),
            fmt.with_interval(point.get("mean"), point.get("ci_low"), point.get("ci_high")),
            fmt.count(point.get("n")),
            fmt.yes_no(point.get("used")),
        )
        for point in entry["curve"]
    ]
    columns = ("budget", "forward passes", metric_label(entry["metric"]), "seeds", "read off")
    return Table("Standard at each budget", columns, tuple(rows))


def _saved(share: dict) -> str:
    """The share that is saved, in percent, of a method that is told from Standard; negative for one that costs more."""
    value, low, high = (number(share.get(key)) for key in ("value", "ci_low", "ci_high"))
    told = high < 1 or low > 1
    return f"{100 * (1 - value):.0f} %" if told and not math.isnan(value) else fmt.NONE


def _time(wall: dict | None) -> str:
    value, low, high = (number((wall or {}).get(key)) for key in ("value", "ci_low", "ci_high"))
    if math.isnan(low) != math.isnan(high):  # an end beyond the budgets
        return f"{_two(value)} (at {'most ' + _two(high) if math.isnan(low) else 'least ' + _two(low)})"
    return fmt.ratio(wall) if wall else fmt.NONE


def _with_probe(share: dict) -> str:
    probe, spent = number(share.get("probe_forward_passes")), number(share.get("forward_passes"))
    return _two(number(share.get("value")) * (1 + probe / spent)) if probe > 0 and spent > 0 else fmt.NONE
