"""The figure of compute saved: Standard's curve over its forward passes, and what each method needs of them."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from stabledllm.reports.labels import label, metric_label
from stabledllm.reports.saved import in_words
from stabledllm.reports.stored import number
from stabledllm.reports.style import GRID, INK, MUTED, colour, new_figure, styled


@styled
def compute_saved(entry: dict) -> Figure | None:
    """One metric's curve of Standard with every method's reading on the left, the shares with intervals on the right.

    Args:
        entry: a metric of the stored ``compute_saved``. None is returned where no budget or method is stored.
    """
    curve = [point for point in entry["curve"] if number(point.get("forward_passes")) > 0]
    own = next((number(p["forward_passes"]) for p in curve if number(p.get("multiple")) == 1), math.nan)
    methods = entry["methods"]
    if len(curve) < 2 or not methods or math.isnan(own):
        return None
    figure = new_figure(10.4, max(3.6, 1.6 + 0.34 * len(methods)))
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _curve(left, curve, methods, own)
    left.set_ylabel(metric_label(entry["metric"]))
    _shares(right, methods)
    return figure


def _curve(axes: Axes, curve: list[dict], methods: list[dict], own: float) -> None:
    used = [point for point in curve if point.get("used") is not False]
    xs, ys = ([number(p.get(key)) for p in used] for key in ("forward_passes", "mean"))
    axes.plot(xs, ys, "-", color=INK, label="Standard, mean over seeds", zorder=3)
    for point in curve:
        x, y, low, high = (number(point.get(key)) for key in ("forward_passes", "mean", "ci_low", "ci_high"))
        if not math.isnan(low + high):
            axes.plot([x, x], [low, high], color=INK, linewidth=1.1, alpha=0.55)
        axes.plot(x, y, "o", color=INK, markersize=5.5, markerfacecolor=INK if point in used else "white", zorder=4)
    for method in methods:
        x, y, share = (number(method.get(key)) for key in ("forward_passes", "mean", "value"))
        ink = colour(method["method"])
        axes.plot(x, y, "D", color=ink, markersize=5.5, zorder=5)
        if share > 0:
            axes.plot([x, x / share], [y, y], ":", color=ink, linewidth=1.4, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([number(p.get("forward_passes")) for p in curve]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / own:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training forward passes ÷ Standard's own")
    axes.plot([], [], "D", color=MUTED, markersize=5.5, label="a method")
    axes.legend()


def _shares(axes: Axes, methods: list[dict]) -> None:
    axes.axvline(1, color=INK, linewidth=1.2, zorder=1)
    least, most = (pick(number(m.get(key)) for m in methods) for pick, key in ((min, "least"), (max, "most")))
    for y, method in enumerate(methods):
        ink, known = colour(method["method"]), method.get("known")
        value, low, high = (number(method.get(key)) for key in ("value", "ci_low", "ci_high"))
        ends = (number(method.get("least")) if math.isnan(low) else low, high)
        ends = (ends[0], number(method.get("most")) if math.isnan(high) else high)
        if known and not math.isnan(sum(ends)):
            axes.plot(ends, [y, y], color=ink, linewidth=2.2, solid_capstyle="butt", zorder=3)
            if math.isnan(low):
                axes.plot(ends[0], y, "<", color=ink, markersize=6, zorder=4)
            if math.isnan(high):
                axes.plot(ends[1], y, ">", color=ink, markersize=6, zorder=4)
        if not math.isnan(value):
            axes.plot(value, y, "D", color=ink, markersize=5.5, zorder=5)
        axes.text(1.02, y, in_words(method), transform=axes.get_yaxis_transform(), va="center", size=9)
    axes.set_yticks(range(len(methods)), [label(m["method"]) for m in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    pad = 0.04 * (most - least)
    if math.isfinite(pad):
        axes.set_xlim(min(least, 1) - pad, max(most, 1) + pad)
    axes.set_xlabel("share of Standard's forwards needed for the same value")
    axes.grid(axis="y", color=GRID)
