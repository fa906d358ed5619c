"""The runs of a recipe, each with its method, built once for everything that checks, counts or starts them."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.build import build_method
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.compared import name_of, runs_compared
from stabledllm.experiment.grid import NO_GRID, Cell, cells_of
from stabledllm.noise.methods import Method


@dataclass(frozen=True)
class Planned:
    """One training run that is to be made: its settings and its method."""

    settings: TrainSettings
    method: Method
    cell: Cell = NO_GRID
    """Its place in the grid of learning rates."""

    @property
    def name(self) -> str:
        """The name under which it is compared with others."""
        return name_of(self.settings)


def runs_of(settings: TrainSettings | ExperimentSettings) -> list[Planned]:
    """The run of a training recipe, or one run of every method of an experiment at every place of its grid.

    Raises:
        UserError: a method is unknown, or its views do not divide the batch.
    """
    runs = [Planned(run, build_method(run.method, run)) for run in runs_compared(settings)]
    if isinstance(settings, TrainSettings):
        return runs
    cells = cells_of(settings)
    return [_at(cell, run, rows_per_step(run.method, settings)) for cell in cells for run in runs]


def _at(cell: Cell, run: Planned, batch: int) -> Planned:
    trainer = run.settings.trainer | cell.values
    own = {"method": run.method.name, "batch": batch, "trainer": trainer}
    return Planned(run.settings.model_copy(update=own), run.method, cell)
