"""The models that come with the package; loads no framework."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

SHIPPED = ("tiny", "tiny-mmada")
"""The reference model, for text, and a model of MMaDA's family that draws small scenes."""


def shipped_folder(name: str) -> Path | None:
    """The folder of a shipped model; None for any other name."""
    return Path(str(files("stabledllm") / "assets" / name)) if name in SHIPPED else None
