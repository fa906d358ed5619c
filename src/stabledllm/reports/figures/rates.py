"""The figure of final losses over the learning rate, a line per method, with the ranges within 2 % of the best."""

from __future__ import annotations

import math
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.labels import clipping, exact, label, metric_label
from stabledllm.reports.stored import number
from stabledllm.reports.style import INK, colour, new_figure, styled

_TALL = 0.9
"""The axis ends at most this share above the lowest loss; what is higher would press the curves together."""


@styled
def rate_curves(results: dict) -> Figure | None:
    """One panel per clipping norm: mean over seeds, band from the lowest to the highest seed.

    Below the curves each method's range is a bar, with an arrow where the grid ends before it; above them, in a row for
    each method, a cross with the number of diverged runs marks the rates at which there were any.
    """
    record = results.get("rates") or {}
    curves = [curve for curve in record.get("curves") or [] if any(point.get("n") for point in curve["points"])]
    if not curves:
        return None
    norms = list(dict.fromkeys(curve.get("max_grad_norm") for curve in curves))
    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    figure = new_figure(9.6 if len(norms) > 1 else 6.4, 3.8 + 0.25 * len(methods))
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    low, top = _span(curves)
    row, rates = 0.06 * (top - low), record["learning_rates"]
    is_lost = any(point.get("n_diverged") for curve in curves for point in curve["points"])
    ceiling = top + (1 + len(methods) * is_lost) * row
    for axes, norm in zip(panels, norms, strict=True):
        for curve in curves:
            if curve.get("max_grad_norm") == norm:
                place = methods.index(curve["method"]) + 1
                _draw(axes, curve, ceiling)
                _bar(axes, curve, low - (place + 0.5) * row)
                _crosses(axes, curve, top + place * row)
        axes.set_xscale("log")
        axes.set_xticks(rates, [exact(rate) for rate in rates], rotation=45 if _are_close(rates) else 0)
        axes.minorticks_off()
        axes.set_xlim(min(rates) / 1.25, max(rates) * 1.25)
        axes.set_ylim(low - (len(methods) + 1.5) * row, ceiling)
        axes.set_title("".join(clipping(norm)).capitalize())
    panels[0].set_ylabel(metric_label(record["metric"]))
    figure.supxlabel("learning rate", fontsize=9.5)
    if is_lost:
        panels[0].plot([], [], "x", color=INK, label="some runs diverged, and how many")
    panels[0].plot([], [], "-", color=INK, linewidth=4, alpha=0.5, label="within 2 % of its best; arrow: the grid ends")
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2)
    return figure


def _are_close(rates: list[float]) -> bool:
    """Whether rates stand so close on the axis that their numbers would overlap."""
    logs = sorted(math.log(rate) for rate in rates)
    return any(after - before < (logs[-1] - logs[0]) / 6.5 for before, after in pairwise(logs))


def _span(curves: list[dict]) -> tuple[float, float]:
    """The lowest and the highest loss that is drawn; without any, 0 and 1."""
    points = [point for curve in curves for point in curve["points"]]
    lows, highs = (
        [loss for point in points if not math.isnan(loss := number(point.get(key)))] for key in ("lowest", "highest")
    )
    if not lows:
        return 0.0, 1.0
    low, high = min(lows), max(highs)
    return low, min(high, low * (1 + _TALL)) if high > low else low * 1.01


def _draw(axes: Axes, curve: dict, ceiling: float) -> None:
    ink, points = colour(curve["method"]), [point for point in curve["points"] if point.get("n")]
    rates = [point["learning_rate"] for point in points]
    means, lowest, highest = (
        [math.nan if point.get("n_diverged") else number(point.get(key)) for point in points]
        for key in ("mean", "lowest", "highest")
    )
    axes.fill_between(rates, lowest, highest, color=ink, alpha=0.18, linewidth=0)
    axes.plot(rates, means, "o-", color=ink, markersize=3.5, label=label(curve["method"]))
    for rate, mean in zip(rates, means, strict=True):
        if mean > ceiling:
            axes.plot(rate, ceiling, "^", color=ink, markersize=6, clip_on=False)


def _bar(axes: Axes, curve: dict, height: float) -> None:
    found, ink = curve.get("range"), colour(curve["method"])
    if not found:
        return
    low, high = found["low"], found["high"]
    axes.plot([low["value"], high["value"]], [height] * 2, color=ink, linewidth=4, alpha=0.5, solid_capstyle="butt")
    for end, marker in ((low, "<"), (high, ">")):
        if end.get("is") != "exact":
            axes.plot(end["value"], height, marker, color=ink, markersize=5)


def _crosses(axes: Axes, curve: dict, height: float) -> None:
    ink = colour(curve["method"])
    for point in curve["points"]:
        if lost := point.get("n_diverged"):
            axes.plot(point["learning_rate"], height, "x", color=ink, markersize=6)
            at = (point["learning_rate"], height)
            axes.annotate(str(lost), at, (6, 0), textcoords="offset points", color=ink, va="center", size=8)
