"""Tables of a grid of learning rates: the range near each method's best, and what its runs came to at every rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import clipping, exact, metric_label, metric_name
from stabledllm.reports.stored import number, run_metrics
from stabledllm.reports.table import Table
from stabledllm.reports.tables import DIVERGED, Name


def rate_tables(results: dict, name: Name = str) -> Iterator[Table]:
    """Yields the table of ranges, then for every learning rate the metrics, the differences and the outlier steps."""
    record = results["rates"]
    metric = record["metric"]
    yield range_table(record, name)
    yield _by_rate(
        record, name, metric_label(metric), _loss_at(record), "Mean ± sd over seeds, of the runs that ended."
    )
    if any(entry.get("versus_standard") for entry in results["summary"]):
        note = "The method minus Standard over common seeds at the same rate, with its 95 % interval."
        title = f"{metric_label(metric)} vs Standard"
        yield _by_rate(record, name, title, lambda curve, point: _versus_at(results, metric, curve, point), note)
    for other in run_metrics(results):
        if other != metric and any(entry["metric"] == other for entry in results["summary"]):
            title, note = metric_label(other), "Mean ± sd over seeds, of the runs that ended."
            yield _by_rate(record, name, title, lambda curve, point, m=other: _mean_at(results, m, curve, point), note)
    note = "Mean number a run of steps with a gradient norm, before clipping, far above the median of those before it."
    yield _by_rate(record, name, "Outlier steps", lambda _, point: fmt.plain(point.get("outlier_steps"), 2), note)


def range_table(record: dict, name: Name = str) -> Table:
    """The table of the widest range of learning rates within 2 % of each method's best."""
    rows = []
    for curve in record["curves"]:
        found, best, versus = curve.get("range") or {}, curve.get("best") or {}, curve.get("versus_standard") or {}
        runs = sum(int(number(point.get("n"))) for point in curve["points"])
        lost = sum(int(number(point.get("n_diverged"))) for point in curve["points"])
        difference = versus.get("best") or {}
        rows.append(
            (
                curve_name(curve, name),
                f"{_end(found['low'])} to {_end(found['high'])}" if found else fmt.NONE,
                _bounded(found.get("factor")),
                "1" if curve["method"] == "standard" and found else _bounded(versus.get("ratio")),
                fmt.plain(best.get("value"), 4),
                exact(best["learning_rate"]) if best else fmt.NONE,
                fmt.with_interval(*(difference.get(key) for key in ("difference", "ci_low", "ci_high")), sign=True),
                str(curve.get("seeds", fmt.NONE)),
                f"{lost} of {runs}",
            )
        )
    columns = (
        "method", "range", "factor", "÷ Standard's", "best", "at", "best vs Standard's", "seeds", DIVERGED,
    )  # fmt: skip
    note = (
        "Range: learning rates whose mean is within 2 % of the method's best on the grid; factor: its highest over its "
        "lowest, with its 95 % interval over seeds; ≥: the grid ends first."
    )
    more = "Best vs Standard's: each at its own best rate. A rate at which a run diverged is outside of every range."
    title = (
        f"Learning rates within {100 * number(record.get('within')):.0f} % of the best {metric_name(record['metric'])}"
    )
    return Table(title, columns, tuple(rows), note, more, answers=4)


def curve_name(curve: dict, name: Name = str) -> str:
    """The method of a curve with its clipping, where that is varied."""
    return ", ".join([name(curve["method"]), *clipping(curve.get("max_grad_norm"))])


def _by_rate(record: dict, name: Name, title: str, cell: Callable[[dict, dict], str], note: str) -> Table:
    rows = [(curve_name(curve, name), *(cell(curve, point) for point in curve["points"])) for curve in record["curves"]]
    columns = ("method", *(exact(rate) for rate in record["learning_rates"]))
    return Table(f"{title}, by learning rate", columns, tuple(rows), note)


def _loss_at(record: dict) -> Callable[[dict, dict], str]:
    known = [number(point.get("mean")) for curve in record["curves"] for point in curve["points"]]
    low = min((mean for mean in known if not math.isnan(mean)), default=math.nan)
    places = 3 if math.isnan(low) or low >= 1 else 4

    def shown(curve: dict, point: dict) -> str:
        return _mean(point.get("mean"), point.get("sd"), int(number(point.get("n_diverged"))), places)

    return shown


def _mean(mean: object, sd: object, lost: int, places: int) -> str:
    text = fmt.fixed(mean, places) + ("" if math.isnan(number(sd)) else f" ± {number(sd):.{places}f}")
    return f"{text} ({lost} {DIVERGED})" if lost else text


def _entry(results: dict, metric: str, curve: dict, point: dict) -> dict:
    """The stored summary of a method and a metric at one place of the grid, empty where there is none."""
    keys = ("method", "max_grad_norm")
    for entry in results["summary"]:
        at = entry["metric"] == metric and entry.get("learning_rate") == point["learning_rate"]
        if at and all(entry.get(key) == curve.get(key) for key in keys):
            return entry
    return {}


def _mean_at(results: dict, metric: str, curve: dict, point: dict) -> str:
    entry = _entry(results, metric, curve, point)
    return _mean(entry.get("mean"), entry.get("sd"), int(number(point.get("n_diverged"))), 3)


def _versus_at(results: dict, metric: str, curve: dict, point: dict) -> str:
    if curve["method"] == "standard":
        return fmt.NONE if point.get("mean") is None else "0"
    versus = _entry(results, metric, curve, point).get("versus_standard") or {}
    return fmt.with_interval(*(versus.get(key) for key in ("difference", "ci_low", "ci_high")), sign=True)


_SIGNS = {"at least": "≥ ", "at most": "≤ "}


def _end(end: dict) -> str:
    sign = _SIGNS.get(end.get("is"))
    return f"{sign}{exact(end['value'])}" if sign else f"{number(end.get('value')):.2g}"


def _bounded(stored: dict | None) -> str:
    """A factor or ratio with its interval, ``≥ 3.9, 2.8 to ∞``; the dash where the grid shows neither side."""
    if not stored or stored.get("value") is None:
        return fmt.NONE
    value = f"{_SIGNS.get(stored.get('is'), '')}{fmt.plain(stored['value'], 2)}"
    low, high = stored.get("ci_low"), stored.get("ci_high")
    if low is None and high is None:
        return value
    ends = ("0" if low is None else fmt.plain(low, 2)), ("∞" if high is None else fmt.plain(high, 2))
    return f"{value}, {' to '.join(ends)}"
