"""The look of every figure: one colour for one thing, fit for the screen, for print and for colour-blind readers."""

from __future__ import annotations

import base64
import functools
import io
import zlib
from collections.abc import Callable

import matplotlib
from matplotlib.figure import Figure

COMPONENTS = {"mask_pattern": "#0072B2", "mask_rate": "#E69F00", "data": "#8A8F98"}
"""A, B and C, in the order in which they are stacked."""

INK, MUTED, GRID = "#22262B", "#667080", "#E3E6EA"
G_COLOUR, V_COLOUR, VIEWS_COLOUR = "#117733", "#0072B2", "#CC6677"

_METHODS = {
    "standard": "#3B3F46",
    "ppots": "#332288",
    "mirror": "#CC6677",
    "ppots+mirror": "#117733",
    "strats": "#3E9BC8",
    "strats+ppots+mirror": "#AA4499",
    "clipped": "#B8860B",
    "isad": "#44AA99",
    "isad-exact": "#2B7A6F",
    "syrm": "#808000",
    "ema": "#882255",
    "multisample": "#6A7FBF",
    "fixedcount": "#D55E00",
    "lowdisc+fixedcount": "#C0392B",
    "espo": "#0072B2",
    "coupled": "#CC79A7",
    "one-step": "#E69F00",
    "unigrpo": "#7F7F00",
}
_OTHERS = ("#56B4E9", "#A0522D", "#6B8E23", "#9467BD", "#5F6B7A", "#C44E52")

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "stabledllm",
    "figure.facecolor": "white",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorates a function that draws a figure to use this style; the caller's matplotlib settings are restored."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapped


def save(figure: Figure, target, kind: str) -> None:
    """Write a figure as ``png`` or ``svg`` under this style, without date or author."""
    with matplotlib.rc_context(_RC):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(target, format=kind, dpi=160, metadata=metadata)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, of a size in inches, whose parts are laid out without overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def colour(method: str) -> str:
    """The colour of a method, always the same for the same method string."""
    return _METHODS.get(method) or _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)]


def data_uri(figure: Figure | None) -> str | None:
    """The figure as a data URI (SVG); None for no figure."""
    if figure is None:
        return None
    buffer = io.BytesIO()
    save(figure, buffer, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
