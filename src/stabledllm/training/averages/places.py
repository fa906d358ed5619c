"""Where averages of the weights lie, in a checkpoint and in a run's folder. Loads no framework."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

AVERAGES = "averages"
"""The folder of averages in a checkpoint, and in a run's that of snapshots and of what the averages decoded."""
_STEP = re.compile(r"step-(\d+)")


def file_of(folder: Path, name: str) -> Path:
    """The file of an average in a folder of them."""
    return folder / f"{name}.safetensors"


def snapshot_folder(run: Path, step: int) -> Path:
    """The folder of a run's snapshot after a step."""
    return run / AVERAGES / f"step-{step}"


def snapshots_in(run: Path) -> Iterator[tuple[int, Path]]:
    """Yields the steps and folders of the snapshots in a run's folder, in the order of the steps."""
    matches = ((_STEP.fullmatch(folder.name), folder) for folder in (run / AVERAGES).glob("step-*"))
    yield from sorted((int(match[1]), folder) for match, folder in matches if match)
