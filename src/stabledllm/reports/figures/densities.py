"""The figure of the density of t that each method draws from, beside the uniform one."""

from __future__ import annotations

from matplotlib.figure import Figure

from stabledllm.reports.labels import label
from stabledllm.reports.stored import array
from stabledllm.reports.style import MUTED, colour, new_figure, styled

_DASHES = ("-", "--", ":", "-.")


@styled
def densities(data: dict) -> Figure | None:
    """The density p(t) of every method that has one of its own."""
    stored = [(d, array(d.get("t")), array(d.get("p"))) for d in data.get("densities") or []]
    curves = [(d, t, p) for d, t, p in stored if t is not None and p is not None and len(t) == len(p)]
    if not curves:
        return None
    figure = new_figure(9.6, 3.3)
    axes = figure.subplots()
    axes.axhline(1, color=MUTED, linewidth=1.2, label="uniform (Standard)")
    for i, (d, t, p) in enumerate(curves):
        source = f" ({d['source']})" if d.get("source") not in (None, "iid") else ""
        axes.plot(t, p, _DASHES[i % 4], color=colour(d["method"]), label=label(d["method"]) + source)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mask rate t")
    axes.set_ylabel("density p(t)")
    axes.set_title("How often each mask rate is drawn")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
