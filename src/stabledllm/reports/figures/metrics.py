"""The figure of final metrics: a dot per seed, the stored mean with its interval, and the untuned model's line."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.labels import label, metric_label
from stabledllm.reports.stored import number, run_methods, run_metrics, summary_of, value
from stabledllm.reports.style import INK, MUTED, colour, new_figure, styled


@styled
def final_metrics(results: dict) -> Figure | None:
    """The final metrics, with one panel per metric and the methods from top to bottom."""
    methods, metrics = run_methods(results), run_metrics(results)
    if not methods or not metrics:
        return None
    figure = new_figure(9.6, 1.35 + 0.36 * len(methods))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, results, methods, metric)
    panels[0].set_yticks(range(len(methods)), [label(m) for m in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = {t: h for ax in panels for h, t in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
    return figure


def _panel(axes: Axes, results: dict, methods: list[str], metric: str) -> None:
    axes.set_xlabel(metric_label(metric))
    axes.locator_params(axis="x", nbins=6)
    untuned = value(((results.get("untuned") or {}).get("metrics") or {}).get(metric))
    line = None
    if not math.isnan(untuned):
        line = axes.axvline(untuned, color="#B9770E", linestyle="--", linewidth=1.3, label="untuned model")
    reference = number(summary_of(results, "standard", metric).get("mean"))
    if not math.isnan(reference):
        axes.axvline(reference, color=MUTED, linewidth=0.9, label="Standard's mean")
    intervals: list[tuple[float, float, float, str]] = []
    seen = [reference]
    for y, method in enumerate(methods):
        runs = [value((r.get("metrics") or {}).get(metric)) for r in results["runs"] if r["method"] == method]
        axes.plot(runs, [y + 0.2] * len(runs), "o", color=colour(method), markersize=4, alpha=0.65, markeredgewidth=0)
        s = summary_of(results, method, metric)
        mean, low, high = (number(s.get(k)) for k in ("mean", "ci_low", "ci_high"))
        seen += [*runs, mean]
        if not math.isnan(low + high):
            intervals.append((y - 0.1, low, high, colour(method)))
            axes.plot([low, high], [y - 0.1, y - 0.1], color=colour(method), linewidth=2)
        axes.plot(mean, y - 0.1, "D", color=colour(method), markersize=5.5, zorder=4)
    axes.plot([], [], "o", color=INK, markersize=4, alpha=0.65, markeredgewidth=0, label="one seed")
    axes.plot([], [], "D-", color=INK, markersize=5.5, label="mean, with interval")
    seen = [v for v in seen if math.isfinite(v)]
    if seen and not math.isnan(untuned) and not _far(untuned, seen):
        seen.append(untuned)
    elif seen and line is not None:
        line.remove()
        side = "left" if untuned < min(seen) else "right"
        axes.set_title(f"untuned model: {untuned:.3g}, off the axis", loc=side, fontsize=8, color="#B9770E", pad=3)
    _cut(axes, seen, intervals)


def _far(untuned: float, seen: list[float]) -> bool:
    """Whether the untuned model's value would squash the runs into one dot."""
    spread = max(seen) - min(seen) or 0.1 * abs(seen[0])
    return min(abs(untuned - v) for v in seen) > 5 * spread


def _cut(axes: Axes, seen: list[float], intervals: list[tuple[float, float, float, str]]) -> None:
    """Cut huge intervals of few seeds at the edge, where they end in an arrow, so that the dots stay readable."""
    if not seen:
        return
    margin = 0.3 * (max(seen) - min(seen)) or 0.1 * abs(seen[0]) or 0.1
    left = max(min(seen) - margin, min([low for _, low, _, _ in intervals] + [min(seen) - margin / 4]))
    right = min(max(seen) + margin, max([high for _, _, high, _ in intervals] + [max(seen) + margin / 4]))
    pad = 0.03 * (right - left)
    axes.set_xlim(left - pad, right + pad)
    for y, low, high, ink in intervals:
        if low < left - pad:
            axes.plot(left, y, "<", color=ink, markersize=5)
        if high > right + pad:
            axes.plot(right, y, ">", color=ink, markersize=5)
