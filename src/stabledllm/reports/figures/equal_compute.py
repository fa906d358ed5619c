"""The figure of every method's noise at equal compute as a multiple of Standard's, measured and predicted."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stabledllm.reports.labels import label
from stabledllm.reports.numbers import with_interval
from stabledllm.reports.stored import noise_of, number, standard_first, value
from stabledllm.reports.style import GRID, INK, MUTED, colour, new_figure, styled

_KINDS = {
    "loss": ("measured", "predicted from the decomposition"),
    "gradient": ("predicted", "from drawn steps, noise over signal"),
}
"""For each quantity, what the dots and what the triangles show."""
_IN_BLOCKS = "measured", _KINDS["gradient"][1]
"""The same of the gradient of a model in blocks, whose variances are not predicted."""


@styled
def equal_compute(data: dict, quantity: str = "loss") -> Figure | None:
    """Each method's ratio to Standard: a dot with its stored interval, hollow where the method has another objective.

    A triangle is a second ratio, see :data:`_KINDS`; a line marks Standard.

    Args:
        quantity: whose noise, ``loss`` or ``gradient``. None is returned where it was not measured.
    """
    by_name = noise_of(data, quantity)
    if not by_name:
        return None
    names = standard_first(list(by_name))
    figure = new_figure(9.6, 1.5 + 0.42 * len(names))
    axes = figure.subplots()
    base = value((by_name.get("standard") or {}).get("predicted_at_equal_compute"))
    axes.axvline(1, color=INK, linewidth=1.2, zorder=1)
    ends = [1.0]
    for y, name in enumerate(names):
        m = by_name[name]
        r = m.get("relative_to_standard") or {}
        x, low, high = (number(r.get(k)) for k in ("value", "ci_low", "ci_high"))
        biased = m.get("unbiased") is False
        if not math.isnan(low + high):
            axes.plot([low, high], [y, y], color=colour(name), linewidth=2.2, solid_capstyle="butt", zorder=3)
        fill = "white" if biased else colour(name)
        axes.plot(x, y, "o", color=colour(name), markerfacecolor=fill, markersize=7, markeredgewidth=1.6, zorder=4)
        predicted = value(m.get("predicted_at_equal_compute")) / base if base > 0 else math.nan
        if quantity == "gradient":
            predicted = number((m.get("measured_relative_to_standard") or {}).get("value"))
        axes.plot(predicted, y + 0.27, "^", color=MUTED, markersize=5, zorder=3)
        text = "1" if name == "standard" else _measured(x, low, high)
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", size=9)
        ends += [v for v in (x, low, high, predicted) if math.isfinite(v)]
    dot, triangle = _IN_BLOCKS if quantity == "gradient" and data.get("blocks") else _KINDS[quantity]
    axes.text(
        1.02, -0.85, f"{dot} (interval)", transform=axes.get_yaxis_transform(), va="center", color=MUTED, size=8.5
    )
    axes.set_yticks(range(len(names)), [_name(by_name[n]) for n in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    _scale(axes, ends)
    axes.set_xlabel(
        f"{quantity} noise at equal compute ÷ Standard's   (left of the line: less noise for the same forward passes)"
    )
    axes.grid(axis="y", color=GRID)
    axes.plot([], [], "o", color=INK, label=f"{dot}, with interval")
    axes.plot([], [], "^", color=MUTED, markersize=5, label=triangle)
    if any(m.get("unbiased") is False for m in by_name.values()):
        axes.plot([], [], "o", color=INK, markerfacecolor="white", label="biased: another objective")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _measured(x: float, low: float, high: float) -> str:
    value, comma, span = with_interval(x, low, high).partition(", ")
    return f"{value}  ({span})" if comma else value


def _name(method: dict) -> str:
    tail = "\nbiased: another objective" if method.get("unbiased") is False else ""
    return label(method["method"]) + tail


def _scale(axes, ends: list[float]) -> None:
    low, high = min(ends), max(ends)
    if low > 0 and high / low > 6:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low / 1.15, high * 1.15)
    else:
        margin = 0.06 * max(high - low, 0.2)
        axes.set_xlim(min(0, low - margin), high + margin)
