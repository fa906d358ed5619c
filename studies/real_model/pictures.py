"""The study's pictures, in the library's own style."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from stabledllm.reports.labels import label
from stabledllm.reports.style import INK, MUTED, colour, new_figure, styled

ARMS = {
    "shift": "shift kept (default)",
    "no-shift": "shift dropped",
    "annealed": "shift, attention annealed",
    "mean-embedding": "shift, mask = mean of rows",
    "random": "random weights",
}
_COLOURS = ("#22262B", "#CC6677", "#0072B2", "#117733", "#B8860B")
AGAIN = "{}, again for part 3"
"""An arm that another machine adapted once more, which part 3 starts from."""
_WHEN = {"before": ("#CC6677", "converted"), "after": ("#0072B2", "adapted"), "toy": ("#8A8F98", "shipped toy")}


@styled
def adaptation(results: dict) -> Figure:
    """NLL on held-out templates, the loss of each step and its gradient norm, over the steps of adaptation."""
    figure = new_figure(11, 4.2)
    left, middle, right = figure.subplots(1, 3)
    inks = dict(zip(ARMS, cycle(_COLOURS), strict=False))
    again = results.get("adapted_again", {})
    runs = [(arm, results["adapt"].get(arm), "-", ARMS[arm]) for arm in ARMS]
    for arm, run, line, name in [*runs, *((arm, run, ":", AGAIN.format(ARMS[arm])) for arm, run in again.items())]:
        if run:
            step, nll, error = (np.array([e[k] for e in run["evaluations"]], float) for k in ("step", "nll", "stderr"))
            style = {"color": inks[arm], "linestyle": line}
            left.errorbar(step, nll, 1.96 * error, **style, marker="o", markersize=3, capsize=2, label=name)
            history = np.array(run["history"], float)
            middle.plot(history[:, 0], history[:, 1], **style, linewidth=0.9, alpha=0.85)
            right.plot(history[:, 0], history[:, 2], **style, linewidth=0.9, alpha=0.85)
    left.set_title("NLL bound, held-out templates")
    left.set_ylabel("nats per token")
    if results["adapt"]:
        figure.legend(loc="outside lower center", ncols=3)
    middle.set_title("Loss of each step")
    right.set_title("Gradient norm of each step")
    _logarithmic(right)
    for axes in (left, middle, right):
        axes.set_xlabel("step")
    return figure


@styled
def noise(results: dict) -> Figure:
    """g, v, rho and p* of the converted model before and after adaptation, beside the shipped toy's."""
    figure = new_figure(11, 3.4)
    panels = figure.subplots(1, 4)
    titles = {
        "g": "Mean loss g(t), nats",
        "v": "Variance over masks v(t), nats²",
        "rho": "Correlation ρ(t) of MIRROR's",
    }
    for name, (ink, told) in _WHEN.items():
        found = results["noise"].get(name)
        if not found or not found["curves"]:
            continue
        curves = found["curves"]
        for axes, key in zip(panels, titles, strict=False):
            t, y = (np.array([np.nan if v is None else v for v in curves[k]], float) for k in ("t", key))
            axes.plot(t[t > 0.01], y[t > 0.01], color=ink, marker="o", markersize=2.5, label=told)
        for density in found["densities"]:
            if density["method"] == "ppots":
                panels[3].plot(density["t"], density["p"], color=ink, label=told)
    for axes, title in zip(panels, (*titles.values(), "P-POTS's p(t)"), strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("t")
    _logarithmic(panels[1])
    panels[2].axhline(0, color=MUTED, linewidth=0.8)
    if panels[0].lines:
        panels[0].legend()
    return figure


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: powers of ten, and 2 and 5 times those where there are few."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


@styled
def bands(results: dict) -> Figure:
    """The 10 to 90 % band of a step's loss and gradient norm under each method."""
    found = results["bands"]
    figure = new_figure(9.6, 1.0 + 0.36 * max(len(found), 1))
    for axes, name, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("loss", "grad_norm"),
        ("Loss of a step", "Gradient norm of a step"),
        strict=True,
    ):
        for y, (method, band) in enumerate(found.items()):
            axes.plot([band[name]["10"], band[name]["90"]], [y, y], color=colour(method), linewidth=5, alpha=0.6)
            axes.plot(band[name]["50"], y, "o", color=INK, markersize=4)
        axes.set_yticks(range(len(found)), [label(method) for method in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_title(f"{title}: 10, 50 and 90 %")
        if not found:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", va="center", color=INK)
            axes.set_xticks([])
    return figure
