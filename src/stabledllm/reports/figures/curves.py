"""The figure of g(t), v(t) and rho(t) of the loss, with bands of two standard errors."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.stored import array
from stabledllm.reports.style import G_COLOUR, INK, MUTED, V_COLOUR, VIEWS_COLOUR, new_figure, styled


@styled
def curves(data: dict) -> Figure | None:
    """The mean loss g, the mask-pattern variance v (of one view and of the mean of MIRROR's two), and the views'
    correlation."""
    c = data.get("curves")
    if (
        not isinstance(c, dict)
        or array(c.get("t")) is None
        or (array(c.get("g")) is None and array(c.get("v")) is None)
    ):
        return None
    has_rho = array(c.get("rho")) is not None
    figure = new_figure(9.6, 3.3)
    axes = figure.subplots(1, 3 if has_rho else 2, squeeze=False)[0]
    band(axes[0], c, "g", G_COLOUR)
    axes[0].set_title("Mean loss g(t)")
    axes[0].set_ylabel("nats")
    band(axes[1], c, "v", V_COLOUR, "one view")
    band(axes[1], c, "v_mirror", VIEWS_COLOUR, "MIRROR, two views")
    for key in ("v", "v_mirror"):
        bulk_limits(axes[1], array(c.get("t")), array(c.get(key)))
    axes[1].set_title("Mask-pattern variance v(t)")
    axes[1].set_ylabel("nats²")
    axes[1].legend()
    if has_rho:
        band(axes[2], c, "rho", VIEWS_COLOUR)
        axes[2].axhline(0, color=INK, linewidth=0.8)
        axes[2].set_title("Views' correlation ρ(t)")
        axes[2].set_ylim(-1.05, max(0.3, axes[2].get_ylim()[1]))
        axes[2].text(
            0.99, 0.02, "below 0: MIRROR cancels noise", transform=axes[2].transAxes, ha="right", color=MUTED, size=8
        )
    for ax in axes:
        rate_axis(ax)
    return figure


def band(axes: Axes, stored: dict, key: str, colour: str, label: str | None = None) -> None:
    """Draw a stored curve over its ``t`` with a band of two standard errors; nothing where it is not stored."""
    t, y, s = array(stored.get("t")), array(stored.get(key)), array(stored.get(f"{key}_stderr"))
    if t is None or y is None or len(y) != len(t):
        return
    order = t.argsort()
    axes.plot(t[order], y[order], color=colour, label=label, marker="o", markersize=2.6)
    if s is not None and len(s) == len(t):
        axes.fill_between(t[order], (y - 2 * s)[order], (y + 2 * s)[order], color=colour, alpha=0.18, linewidth=0)


def bulk_limits(axes: Axes, t: np.ndarray | None, y: np.ndarray | None) -> None:
    """Scale the axis to the values at t >= 0.05: towards t = 0 a variance grows like 1 / t.

    If it is called for several curves, the largest scale is used.
    """
    if t is None or y is None or len(t) != len(y) or not np.isfinite(y[t >= 0.05]).any():
        return
    top = 1.25 * max(np.nanmax(y[t >= 0.05]), 0.0)
    scaled = getattr(axes, "_bulk_top", 0.0)
    if top <= 0 or (np.nanmax(y) <= top and not scaled):
        return
    axes._bulk_top = max(top, scaled)
    axes.set_ylim(0, axes._bulk_top)


def rate_axis(axes: Axes) -> None:
    """Label the axis of t, with a remark where :func:`bulk_limits` left values off the scale."""
    off = "\nvalues at t < 0.05 may lie above the axis" if hasattr(axes, "_bulk_top") else ""
    axes.set_xlabel("mask rate t" + off)
    axes.set_xlim(0, 1)
