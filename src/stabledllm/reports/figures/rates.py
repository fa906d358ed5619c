"""The figure of final losses over the learning rate, a line per method, with the ranges within 2 % of the best."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.labels import clipping, exact, label, metric_label
from stabledllm.reports.stored import number
from stabledllm.reports.style import INK, MUTED, colour, new_figure, styled

_TALL = 0.6
"""The axis ends this share above the best loss; what is higher would press the curves together."""


@styled
def rate_curves(results: dict) -> Figure | None:
    """One panel per clipping norm: mean over seeds, band from the lowest to the highest seed, crosses for divergence.

    Below the curves each method's range is a bar, with an arrow where the grid ends before it.
    """
    record = results.get("rates") or {}
    curves = [curve for curve in record.get("curves") or [] if any(point.get("n") for point in curve["points"])]
    if not curves:
        return None
    norms = list(dict.fromkeys(curve.get("max_grad_norm") for curve in curves))
    most = max(sum(curve.get("max_grad_norm") == norm for curve in curves) for norm in norms)
    figure = new_figure(9.6 if len(norms) > 1 else 6.4, 3.6 + 0.12 * most)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    known = [number(point.get("mean")) for curve in curves for point in curve["points"]]
    known = [loss for loss in known if not math.isnan(loss)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    top = min(high + 0.06 * (high - low or low), low * (1 + _TALL))
    step = 0.055 * (top - low or 1.0)
    for axes, norm in zip(panels, norms, strict=True):
        mine = [curve for curve in curves if curve.get("max_grad_norm") == norm]
        for place, curve in enumerate(mine):
            _draw(axes, curve, top)
            _bar(axes, curve, low - (place + 1.5) * step)
        axes.set_xscale("log")
        rates = record["learning_rates"]
        axes.set_xticks(rates, [exact(rate) for rate in rates], rotation=0 if len(rates) < 7 else 45)
        axes.minorticks_off()
        axes.set_ylim(low - (most + 1.5) * step, top + 2 * step)
        axes.set_title("".join(clipping(norm)).capitalize())
    panels[0].set_ylabel(metric_label(record["metric"]))
    figure.supxlabel("learning rate", fontsize=9.5)
    panels[0].plot([], [], "x", color=INK, label="some run diverged (number beside it)")
    panels[0].plot([], [], "-", color=INK, linewidth=4, alpha=0.5, label="within 2 % of its best; arrow: the grid ends")
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2)
    return figure


def _draw(axes: Axes, curve: dict, top: float) -> None:
    ink, points = colour(curve["method"]), [point for point in curve["points"] if point.get("n")]
    rates = [point["learning_rate"] for point in points]
    means, lowest, highest = (
        [math.nan if point.get("n_diverged") else number(point.get(key)) for point in points]
        for key in ("mean", "lowest", "highest")
    )
    axes.fill_between(rates, lowest, highest, color=ink, alpha=0.18, linewidth=0)
    axes.plot(rates, means, "o-", color=ink, markersize=3.5, label=label(curve["method"]))
    for point, mean in zip(points, means, strict=True):
        if lost := int(number(point.get("n_diverged"))):
            ended = number(point.get("mean"))
            height = top if math.isnan(ended) or ended > top else ended
            axes.plot(point["learning_rate"], height, "x", color=ink, markersize=7)
            axes.annotate(str(lost), (point["learning_rate"], height), (5, 3), textcoords="offset points", color=ink)
        elif mean > top:
            axes.plot(point["learning_rate"], top, "^", color=ink, markersize=5)
            text = f"{mean:.3g}"
            axes.annotate(text, (point["learning_rate"], top), (5, 3), textcoords="offset points", color=MUTED)


def _bar(axes: Axes, curve: dict, height: float) -> None:
    found, ink = curve.get("range"), colour(curve["method"])
    if not found:
        return
    low, high = found["low"], found["high"]
    axes.plot([low["value"], high["value"]], [height] * 2, color=ink, linewidth=4, alpha=0.5, solid_capstyle="butt")
    for end, marker in ((low, "<"), (high, ">")):
        if end.get("is") != "exact":
            axes.plot(end["value"], height, marker, color=ink, markersize=5)
