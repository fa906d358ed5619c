"""The grid of learning rates, with gradient clipping, at which an experiment makes the runs of each method and seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.compared import name_of
from stabledllm.reports.labels import clipping, exact

_FOLDER = re.compile(r"lr-(?P<learning_rate>[^_]+)(_clip-(?P<max_grad_norm>.+))?")


@dataclass(frozen=True)
class Cell:
    """A place in the grid: what its runs have in the place of the base's values; None where that is not varied.

    >>> cell = Cell(0.002, 0.0)
    >>> cell.folder, cell.words, Cell().folder
    ('lr-0.002_clip-0', 'learning rate 0.002, unclipped', '')
    """

    learning_rate: float | None = None
    max_grad_norm: float | None = None

    @property
    def values(self) -> dict[str, float]:
        """The trainer keys that its runs have, as stored with each run."""
        return {key: value for key, value in vars(self).items() if value is not None}

    @property
    def folder(self) -> str:
        """The name of the folder between the method's and the seeds'; empty without a grid. No two cells share one."""
        names = {"learning_rate": "lr", "max_grad_norm": "clip"}
        return "_".join(f"{names[key]}-{exact(value)}" for key, value in self.values.items())

    @property
    def pattern(self) -> str:
        """How folders of cells like this one are called, in a path: ``lr-R_clip-C/``; empty without a grid."""
        names = {"learning_rate": "lr-R", "max_grad_norm": "clip-C"}
        return "_".join(names[key] for key in self.values) + "/" * bool(self.values)

    @property
    def words(self) -> str:
        """The place for readers; empty without a grid."""
        rate = [] if self.learning_rate is None else [f"learning rate {exact(self.learning_rate)}"]
        return ", ".join([*rate, *clipping(self.max_grad_norm)])


NO_GRID = Cell()


def cells_of(settings: ExperimentSettings) -> list[Cell]:
    """The cells of an experiment's grid; one that varies nothing where there is no grid."""
    return [Cell(*place) for place in product(settings.learning_rates or [None], settings.max_grad_norms or [None])]


def run_folder(out: Path, method: str, seed: int, cell: Cell = NO_GRID) -> Path:
    """The folder of one run: ``runs/METHOD/seed-N``, or with a grid ``runs/METHOD/lr-R_clip-C/seed-N``."""
    return out / "runs" / method / cell.folder / f"seed-{seed}"


def title_of(run: TrainSettings) -> str:
    """A run of an experiment for readers: its method, its cell as its folder tells it, and its seed."""
    found = _FOLDER.fullmatch(Path(run.out).parent.name)
    cell = Cell(*(None if value is None else float(value) for value in found.group(1, 3))) if found else Cell()
    return ", ".join(filter(None, (name_of(run), cell.words, f"seed {run.seed}")))


def counted(settings: ExperimentSettings) -> str:
    """How many learning rates and ways of clipping there are, in words, for a product; empty without a grid."""
    parts = _times(settings.learning_rates, "learning rate"), _times(settings.max_grad_norms, "clipping norm")
    return "".join(f" x {part}" for part in parts if part)


def _times(values: Sequence[float], what: str) -> str:
    return f"{len(values)} {what}{'' if len(values) == 1 else 's'}" if values else ""
