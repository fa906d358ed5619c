"""Figures of training curves, with one small panel per method, each beside Standard's."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from stabledllm.reports.labels import label
from stabledllm.reports.stored import diverged_at, number, run_methods, value
from stabledllm.reports.style import MUTED, colour, new_figure, styled


@styled
def loss_curves(results: dict) -> Figure | None:
    """The moving average of the logged loss: its mean over seeds, and the band from the lowest to the highest seed."""
    return _panels(results, "loss", "logged training loss (nats)", smooth=True)


@styled
def eval_curves(results: dict) -> Figure | None:
    """The validation NLL during training, where it was logged, with the untuned model's line."""
    untuned = value(((results.get("untuned") or {}).get("metrics") or {}).get("validation_nll"))
    return _panels(results, "eval_nll", "validation NLL (nats per token)", smooth=False, line=untuned)


def _panels(results: dict, key: str, ylabel: str, smooth: bool, line: float = np.nan) -> Figure | None:
    curves = {m: over_seeds(results, m, key, smooth) for m in run_methods(results)}
    curves = {m: s for m, s in curves.items() if s is not None}
    if not curves:
        return None
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(9.6, 1.1 + 2.05 * rows + (0.7 if rows == 1 else 0))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (method, (steps, seeds, window)) in zip(grid.flat, curves.items(), strict=False):
        axes.set_title(label(method), fontsize=9.5)
        if method != "standard" and "standard" in curves:
            axes.plot(
                curves["standard"][0],
                mean_over_seeds(curves["standard"][1]),
                color=MUTED,
                linewidth=1.1,
                label="Standard's mean",
            )
        marker = "o" if len(steps) < 40 and not smooth else None
        axes.fill_between(steps, *ends(seeds), color=colour(method), alpha=0.2, linewidth=0)
        axes.plot(steps, mean_over_seeds(seeds), color=colour(method), marker=marker, markersize=3)
        if not np.isnan(line):
            axes.axhline(line, color="#B9770E", linestyle="--", linewidth=1.1, label="untuned model")
        if smooth and window > 1:
            axes.text(
                0.97,
                0.95,
                f"averaged over {window} points",
                transform=axes.transAxes,
                ha="right",
                va="top",
                size=7.5,
                color=MUTED,
            )
        axes.locator_params(nbins=4)
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < len(curves))
        axes.tick_params(labelbottom=i + columns >= len(curves))
    figure.supylabel(ylabel, fontsize=9.5)
    figure.supxlabel("optimizer step", fontsize=9.5)
    handles = {t: h for ax in grid.flat for h, t in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    return figure


def over_seeds(results: dict, method: str, key: str, smooth: bool) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Steps, values (seeds x steps, NaN where a seed has none) and the number of points averaged over; or None."""
    logs = []
    for run in results["runs"]:
        if run["method"] == method and diverged_at(run) is None:
            history = run.get("history") or []
            logs.append({h["step"]: number(h.get(key)) for h in history if not np.isnan(number(h.get(key)))})
    steps = sorted(set().union(*logs))
    if not steps:
        return None
    seeds = np.array([[log.get(s, np.nan) for s in steps] for log in logs if log])
    window = max(1, len(steps) // 20) if smooth else 1
    return np.array(steps), np.array([_moving(row, window) for row in seeds]), window


def _moving(row: np.ndarray, window: int) -> np.ndarray:
    """The centred moving average, which skips missing points and is shorter at the ends."""
    if window == 1:
        return row
    is_known = ~np.isnan(row)
    kernel = np.ones(window)
    total = np.convolve(np.where(is_known, row, 0), kernel, "same")
    points = np.convolve(is_known, kernel, "same")
    return np.divide(total, points, out=np.full(len(row), np.nan), where=is_known)


def mean_over_seeds(seeds: np.ndarray) -> np.ndarray:
    """The mean over seeds at each step, of those that have a value; seeds x steps."""
    return np.ma.masked_invalid(seeds).mean(0).filled(np.nan)


def ends(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest seed at each step; seeds x steps."""
    masked = np.ma.masked_invalid(seeds)
    return masked.min(0).filled(np.nan), masked.max(0).filled(np.nan)
