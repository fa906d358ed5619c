"""The figure of A, B and C as stacked bars; negative estimates are drawn below zero rather than hidden."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.labels import COMPONENT_LABELS
from stabledllm.reports.stored import stderr, value
from stabledllm.reports.style import COMPONENTS, INK, new_figure, styled


@styled
def components(data: dict) -> Figure | None:
    """The variance of the loss by component, over all rows and by response length; with the gradient's where stored.

    Error bars are one standard error of each component, drawn at the end of its segment.
    """
    lengths = [b for b in data.get("by_length") or [] if _known(b)]
    if len(lengths) == 1:  # all responses have one length: the bar of all rows shows it
        lengths = []
    gradient = data.get("gradient") if _known(data.get("gradient")) else None
    if not _known(data["loss"]):
        return None
    widths = [1.9 + 0.95 * len(lengths), *([1.9] if gradient else [])]
    figure = new_figure(min(9.6, 2.6 + 1.35 * sum(widths)), 3.7)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    bars = [("all rows", data["loss"]), *((_length(b), b) for b in lengths)]
    _stack(axes[0], bars, gap=bool(lengths))
    axes[0].set_title(
        "Variance of the loss of one row" if not lengths else "Variance of one row's loss, by response length"
    )
    axes[0].set_ylabel(_unit(data["loss"], "nats²"))
    if gradient:
        _stack(axes[1], [("all rows", gradient)], gap=False)
        axes[1].set_title("Of its gradient")
        axes[1].set_ylabel(_unit(gradient, "(nats per unit)²"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _stack(axes: Axes, bars: list[tuple[str, dict]], gap: bool) -> None:
    places = [i + (0.5 if gap and i else 0) for i in range(len(bars))]
    named: set[str] = set()
    for x, (_, parts) in zip(places, bars, strict=True):
        up = down = 0.0
        shown = [k for k in COMPONENTS if not math.isnan(value(parts.get(k)))]
        for j, key in enumerate(shown):
            v, s = value(parts[key]), stderr(parts[key])
            base = up if v >= 0 else down
            name = None if key in named else COMPONENT_LABELS[key]
            named.add(key)
            axes.bar(x, v, 0.62, bottom=base, color=COMPONENTS[key], label=name, edgecolor="white", linewidth=0.8)
            if not math.isnan(s):
                at = x + 0.16 * (j - (len(shown) - 1) / 2)
                axes.errorbar(at, base + v, s, color=INK, capsize=2.5, linewidth=1, zorder=4)
            up, down = (base + v, down) if v >= 0 else (up, base + v)
    axes.set_xticks(places, [name for name, _ in bars])
    axes.set_xlim(places[0] - 0.8, places[-1] + 0.8)
    axes.grid(axis="x", visible=False)
    axes.axhline(0, color=INK, linewidth=0.8)
    if gap:
        axes.axvline(0.75, color="#B9C0C8", linewidth=0.8)


def _known(parts: object) -> bool:
    return isinstance(parts, dict) and any(not math.isnan(value(parts.get(k))) for k in COMPONENTS)


def _length(entry: dict) -> str:
    low, high, *_ = [*(entry.get("tokens") or []), "?", "?"]
    return f"{low}–{high} tokens\n(n = {entry.get('n', '?')})"


def _unit(parts: dict, default: str) -> str:
    units = [parts[k].get("unit") for k in COMPONENTS if isinstance(parts.get(k), dict)]
    return next((unit for unit in units if unit), default)
