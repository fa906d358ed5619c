"""Writes the commands' figures as PNG files, each whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from stabledllm.reports import figures, style
from stabledllm.runtime.files import write_bytes


def save_decomposition_figures(data: dict, folder: Path) -> list[Path]:
    """Write the figures that a decomposition.json supports as PNG files into the folder, and return their paths."""
    drawn = {
        "decomposition": figures.components(data),
        "curves": figures.curves(data),
        "densities": figures.densities(data),
        "equal_compute": figures.equal_compute(data),
        "equal_compute_gradient": figures.equal_compute(data, "gradient"),
    }
    return [_save(figure, Path(folder) / f"{name}.png") for name, figure in drawn.items() if figure]


def save_fit_figure(data: dict, path: Path) -> Path:
    """Write the figure of a p_of_t.json as a PNG file, and return its path."""
    return _save(figures.fit(data), Path(path))


def _save(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    style.save(figure, content, "png")
    write_bytes(path, content.getvalue())
    return path
