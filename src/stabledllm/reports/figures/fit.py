"""A fitted p(t) beside the measured points it must follow."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.figures.curves import band
from stabledllm.reports.stored import array, number
from stabledllm.reports.style import G_COLOUR, MUTED, V_COLOUR, VIEWS_COLOUR, colour, label, new_figure, styled


@styled
def fit(data: dict) -> Figure:
    """Points, fitted density and the uniform line; beside them g and v of the same probe."""
    figure = new_figure(9.6, 3.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    method = data["method"]
    density = array(data["density"])
    left.axhline(1, color=MUTED, linewidth=1.2, label="uniform")
    if density is not None:
        middle = (np.arange(len(density)) + 0.5) / len(density)
        share = number(data.get("uniform_share"))
        mixed = f", {100 * share:.0f} % uniform mixed in" if share > 0 else ""
        left.plot(middle, density, color=colour(method), label=f"p(t) in use ({data.get('kind', 'fitted')}{mixed})")
    _points(left, data)
    left.set_ylim(bottom=0)
    left.set_ylabel("density")
    left.set_title(f"p(t) for {label(method)}")
    left.legend(fontsize=8.5)
    profile = data["profile"]
    band(right, profile, "g", G_COLOUR, "mean loss g (nats)")
    band(right, profile, "v", V_COLOUR, "mask-pattern variance v (nats²)")
    if profile.get("v_views") != profile.get("v"):
        band(right, profile, "v_views", VIEWS_COLOUR, "v of the mean of the views (nats²)")
    right.set_title("What the probe measured")
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8.5)
    for axes in (left, right):
        axes.set_xlabel("mask rate t")
        axes.set_xlim(0, 1)
    return figure


def _points(axes: Axes, data: dict) -> None:
    """The root of the measured moment, scaled to a density by the trapezoid rule, with one standard error.

    For a source other than iid the part of g common to all rows is taken off, as in the fit.
    """
    profile = data["profile"]
    t, m, s = (array(profile.get(k)) for k in ("t", "second_moment", "second_moment_stderr"))
    if t is None or m is None or len(m) != len(t) or len(t) < 2:
        return
    name = "√(second moment), measured"
    g = array(profile.get("g"))
    if data.get("source") not in (None, "iid") and g is not None and len(g) == len(t):
        m, name = m - g**2, "√(second moment − mean loss²), measured"
    order = np.argsort(t)
    t, m = t[order], np.maximum(m[order], 0)
    root = np.sqrt(m)
    edges, known = np.concatenate([[0], t, [1]]), np.nan_to_num(root)
    area = np.trapezoid(np.concatenate([known[:1], known, known[-1:]]), edges)
    if not area > 0:
        return
    error = None
    if s is not None and len(s) == len(t):
        error = np.divide(s[order], 2 * root * area, out=np.full_like(root, np.nan), where=root > 0)
    axes.errorbar(
        t,
        root / area,
        error,
        fmt="o",
        markersize=3.2,
        color=MUTED,
        ecolor="#A9B1BB",
        elinewidth=1,
        label=name,
        zorder=3,
    )
