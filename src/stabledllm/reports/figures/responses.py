"""The figure of what policy gradients and preferences log over the steps, a panel for each, all methods in it."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.figures.training import ends, mean_over_seeds, over_seeds
from stabledllm.reports.labels import curve_label, label
from stabledllm.reports.stored import run_methods
from stabledllm.reports.style import colour, new_figure, styled

_COLUMNS = 3
_TITLE = 28
"""Letters of a line of a panel's title, which is no wider than the panel."""


@styled
def response_curves(results: dict) -> Figure | None:
    """Rewards, lengths, divergence or margins: their mean over seeds, the band from the lowest to the highest seed."""
    names = curves_of(results)
    if not names:
        return None
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(9.6, 0.7 + 2.3 * rows)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        for method in run_methods(results):
            _draw(axes, results, method, name)
        axes.set_title(textwrap.fill(curve_label(name), _TITLE), fontsize=9.5)
        axes.locator_params(nbins=5)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
        axes.tick_params(labelbottom=place + columns >= len(names))
    figure.supxlabel("optimizer step", fontsize=9.5)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=5)
    return figure


def curves_of(results: dict) -> list[str]:
    """The names in the runs' logs that are drawn, in the order in which they are logged.

    A reward that is the only one is the total, and is drawn once; a figure that no run ever moved is left out.
    """
    lines = [line for run in results["runs"] for line in run.get("history") or []]
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if curve_label(name)]
    parts = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    alone = parts if len(parts) == 1 else []
    return [name for name in names if name not in alone and len({line.get(name) for line in lines} - {None}) > 1]


def _draw(axes: Axes, results: dict, method: str, name: str) -> None:
    found = over_seeds(results, method, name, smooth=True)
    if found is None:
        return
    steps, seeds, _ = found
    axes.fill_between(steps, *ends(seeds), color=colour(method), alpha=0.15, linewidth=0)
    axes.plot(steps, mean_over_seeds(seeds), color=colour(method), label=label(method))
