"""An experiment's grid of learning rates and gradient clipping, where its runs lie and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.compared import name_of
from stabledllm.experiment.reference import multiple_of, other_multiples
from stabledllm.reports.labels import exact, place

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
        return ", ".join(place(self.learning_rate, self.max_grad_norm))


NO_GRID = Cell()


def cells_of(settings: ExperimentSettings) -> list[Cell]:
    """The cells of an experiment's grid; one that varies nothing where there is no grid."""
    return [Cell(*values) for values in product(settings.learning_rates or [None], settings.max_grad_norms or [None])]


def run_folder(out: Path, method: str, seed: int, cell: Cell = NO_GRID) -> Path:
    """The folder of one run: ``runs/METHOD/seed-N``, or with a grid ``runs/METHOD/lr-R_clip-C/seed-N``."""
    return out / "runs" / method / cell.folder / f"seed-{seed}"


def title_of(run: TrainSettings) -> str:
    """A run of an experiment for readers: its method or budget and its cell, as its folder tells them, and its seed."""
    folder = Path(run.out).parent.name
    found = _FOLDER.fullmatch(folder)
    cell = Cell(*(None if value is None else float(value) for value in found.group(1, 3))) if found else NO_GRID
    name = name_of(run) if multiple_of(folder) is None else folder
    return ", ".join(filter(None, (name, cell.words, f"seed {run.seed}")))


def counted(settings: ExperimentSettings) -> str:
    """How many kinds of runs an experiment compares, in words, each of which is made with every seed.

    >>> counted(ExperimentSettings(methods=["standard"], learning_rates=[1e-3, 2e-3]))
    '1 method x 2 learning rates'
    >>> counted(ExperimentSettings(methods=["standard"], standard_at=[2]))
    '(1 method + 1 other budget of Standard)'
    """
    methods = _times(settings.methods, "method")
    if others := other_multiples(settings):
        return f"({methods} + {_times(others, 'other budget')} of Standard)"
    grid = _times(settings.learning_rates, "learning rate"), _times(settings.max_grad_norms, "clipping norm")
    return " x ".join(filter(None, (methods, *grid)))


def _times(values: Sequence, what: str) -> str:
    return f"{len(values)} {what}{'' if len(values) == 1 else 's'}" if values else ""
