"""The density of t that each method draws from, against the uniform one."""

from __future__ import annotations

from matplotlib.figure import Figure

from stabledllm.reports.stored import array
from stabledllm.reports.style import MUTED, colour, label, new_figure, styled

_DASHES = ("-", "--", ":", "-.")


@styled
def densities(data: dict) -> Figure | None:
    """p(t) of every method with a density of its own."""
    found = [d for d in data.get("densities") or [] if array(d.get("t")) is not None and array(d.get("p")) is not None]
    if not found:
        return None
    figure = new_figure(9.6, 3.3)
    axes = figure.subplots()
    axes.axhline(1, color=MUTED, linewidth=1.2, label="uniform (Standard)")
    for i, d in enumerate(found):
        source = f" ({d['source']})" if d.get("source") not in (None, "iid") else ""
        axes.plot(d["t"], array(d["p"]), _DASHES[i % 4], color=colour(d["method"]), label=label(d["method"]) + source)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mask rate t")
    axes.set_ylabel("density p(t)")
    axes.set_title("How often each mask rate is drawn")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
