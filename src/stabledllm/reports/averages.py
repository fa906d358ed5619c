"""The tables of averages of the weights, beside the last weights of the same runs."""

from __future__ import annotations

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import metric_label, place
from stabledllm.reports.stored import number
from stabledllm.reports.table import Table
from stabledllm.reports.tables import Name

_PLACES = 4


def average_tables(results: dict, name: Name = str) -> list[Table]:
    """A table for each metric that averages of the weights have; none where no run kept any."""
    entries = results.get("averages") or []
    return [_table(entries, metric, name) for metric in dict.fromkeys(entry["metric"] for entry in entries)]


def _table(entries: list[dict], metric: str, name: Name) -> Table:
    rows = []
    for entry in entries:
        if entry["metric"] != metric:
            continue
        norm = entry.get("max_grad_norm")
        last, standard = (entry.get(key) or {} for key in ("versus_last", "versus_standard"))
        rows.append(
            (
                ", ".join([name(entry["method"]), entry["average"], *place(entry.get("learning_rate"), norm)]),
                fmt.fixed(number(entry.get("mean")), _PLACES),
                _difference(last),
                fmt.ratio(entry.get("sd_versus_last")),
                fmt.fixed(number(entry.get("sd")), _PLACES + 1),
                fmt.p_value(last.get("p_holm")),
                _difference(standard),
                fmt.count(entry.get("n")),
            )
        )
    columns = (
        "method, average", "mean", "vs last weights", "sd ÷ last weights'", "sd", "p (Holm)",
        "vs Standard, averaged", "seeds",
    )  # fmt: skip
    note = (
        "vs last weights: the average's value minus that of the same runs' last weights, paired by seed, with its 95 % "
        "interval. sd ÷ last weights': the ratio of the spreads over seeds (Pitman-Morgan interval)."
    )
    more = "vs Standard, averaged: the same average of both methods. p (Holm): of vs last weights."
    return Table(f"{metric_label(metric)}: averages of the weights", columns, tuple(rows), note, more, answers=4)


def _difference(versus: dict) -> str:
    """A difference with its interval; alone where there is none."""
    span = fmt.interval(versus.get("ci_low"), versus.get("ci_high"), _PLACES)
    return fmt.signed(versus.get("difference"), _PLACES) + (f", {span}" if span != fmt.NONE else "")
