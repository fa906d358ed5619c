"""The runs of a recipe, each with its method, built once for everything that checks, counts or starts them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stabledllm.build import build_method
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.compared import name_of, runs_compared
from stabledllm.experiment.grid import NO_GRID, Cell, cells_of
from stabledllm.experiment.reference import name_at, other_multiples
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import STANDARD


@dataclass(frozen=True)
class Planned:
    """One training run that is to be made: its settings and its method."""

    settings: TrainSettings
    method: Method
    cell: Cell = NO_GRID
    """Its place in the grid of learning rates."""
    multiple: float = 1.0
    """Of Standard's forward passes, where it is Standard at another budget."""

    @property
    def name(self) -> str:
        """The name under which it is compared with others."""
        return name_of(self.settings) if self.multiple == 1 else name_at(self.multiple)


def runs_of(settings: TrainSettings | ExperimentSettings) -> list[Planned]:
    """The run of a training recipe, or one run of every method at every place of an experiment's grid.

    Behind them come Standard's runs at other budgets.

    Raises:
        UserError: a method is unknown, or its views do not divide the batch.
    """
    runs = [Planned(run, build_method(run.method, run)) for run in runs_compared(settings)]
    if isinstance(settings, TrainSettings):
        return runs
    cells = cells_of(settings)
    of_methods = [_at(cell, run, rows_per_step(run.method, settings)) for cell in cells for run in runs]
    standard = [run for run in of_methods if run.name == STANDARD]
    return of_methods + [replace(run, multiple=at) for at in other_multiples(settings) for run in standard]


def _at(cell: Cell, run: Planned, batch: int) -> Planned:
    trainer = run.settings.trainer | cell.values
    own = {"method": run.method.name, "batch": batch, "trainer": trainer}
    return Planned(run.settings.model_copy(update=own), run.method, cell)
