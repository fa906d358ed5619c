"""The figure of a fitted p(t) with the measured points it was fitted to."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabledllm.reports.figures.curves import band, bulk_limits, rate_axis
from stabledllm.reports.labels import label
from stabledllm.reports.stored import array, number
from stabledllm.reports.style import G_COLOUR, MUTED, V_COLOUR, VIEWS_COLOUR, colour, new_figure, styled

_MEASURED = {"gradient": "E|gradient|²", "difference": "E|policy less reference|², times the loss's slope"}


@styled
def fit(data: dict) -> Figure:
    """The points, the fitted density and the uniform one; beside them g and v from the same probe."""
    figure = new_figure(9.6, 3.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    method = data["method"]
    density = array(data["density"])
    low, high = _window(data)
    left.axhline(1, color=MUTED, linewidth=1.2, label="uniform")
    if density is not None:
        middle = low + (high - low) * (np.arange(len(density)) + 0.5) / len(density)
        share = number(data.get("uniform_share"))
        mixed = f", {100 * share:.0f} % uniform mixed in" if share > 0 else ""
        left.plot(middle, density, color=colour(method), label=f"p(t) in use ({data.get('kind', 'fitted')}{mixed})")
    _points(left, data)
    left.set_ylim(0, max(left.get_ylim()[1], 1.3))
    left.set_ylabel("density")
    left.set_title(f"p(t) for {label(method)}")
    left.legend(fontsize=8.5)
    profile = data["profile"] | {"t": _ratios(data)}
    band(right, profile, "g", G_COLOUR, "mean loss g (nats)")
    band(right, profile, "v", V_COLOUR, "mask-pattern variance v (nats²)")
    if profile.get("v_views") != profile.get("v"):
        band(right, profile, "v_views", VIEWS_COLOUR, "v of the mean of the views (nats²)")
    signal = data.get("signal")
    if isinstance(signal, str) and signal != "loss":
        label_of = _MEASURED.get(signal, f"E|{signal}'s gradient|²")
        band(right, profile, "second_moment", V_COLOUR, label_of)
        bulk_limits(right, array(profile.get("t")), array(profile.get("second_moment")))
    for key in ("v", "v_views"):
        bulk_limits(right, array(profile.get("t")), array(profile.get(key)))
    right.set_title("What the probe measured")
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8.5)
    for axes in (left, right):
        rate_axis(axes)
        if (data.get("objective") or {}).get("bell"):  # the file holds places, which no straight line turns into ratios
            axes.set_xlabel("place in the bell: share of it below the mask ratio")
    return figure


def _window(data: dict) -> tuple[float, float]:
    """The mask ratios that the objective trains, all of them without a window; the file holds places in it."""
    window = (data.get("objective") or {}).get("window")
    return (number(window[0]), number(window[1])) if isinstance(window, list | tuple) and len(window) == 2 else (0, 1)


def _ratios(data: dict) -> list | None:
    """The mask ratios that were probed."""
    places, (low, high) = array(data["profile"].get("t")), _window(data)
    return None if places is None else (low + (high - low) * places).tolist()


def _points(axes: Axes, data: dict) -> None:
    """Draw the points that p was fitted to, which are stored as a density, with one standard error each."""
    profile = data["profile"] | {"t": _ratios(data)}
    t, points, error = (array(profile.get(key)) for key in ("t", "target", "target_stderr"))
    if t is None or points is None or len(points) != len(t):
        return
    axes.errorbar(
        t,
        points,
        error if error is not None and len(error) == len(t) else None,
        fmt="o",
        markersize=3.2,
        color=MUTED,
        ecolor="#A9B1BB",
        elinewidth=1,
        label="√(second moment / cost), measured",
        zorder=3,
    )
    bulk_limits(axes, t, points)
