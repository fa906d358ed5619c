"""The runs of a recipe, each with its method, built once for everything that checks, counts or starts them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stabledllm.build import build_method
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.compared import name_of, runs_compared
from stabledllm.experiment.reference import name_at, other_multiples
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import STANDARD


@dataclass(frozen=True)
class Planned:
    """One training run that is to be made: its settings and its method."""

    settings: TrainSettings
    method: Method
    multiple: float = 1.0
    """Of Standard's forward passes, where it is Standard at another budget."""

    @property
    def name(self) -> str:
        """The name under which it is compared with others."""
        return name_of(self.settings) if self.multiple == 1 else name_at(self.multiple)


def runs_of(settings: TrainSettings | ExperimentSettings) -> list[Planned]:
    """The run of a training recipe, or one run of every method of an experiment and of Standard's other budgets.

    Raises:
        UserError: a method is unknown, or its views do not divide the batch.
    """
    runs = [Planned(run, build_method(run.method, run)) for run in runs_compared(settings)]
    if isinstance(settings, TrainSettings):
        return runs
    of_methods = [
        Planned(
            run.settings.model_copy(update={"method": run.method.name, "batch": rows_per_step(run.method, settings)}),
            run.method,
        )
        for run in runs
    ]
    standard = [run for run in of_methods if run.name == STANDARD]
    return of_methods + [replace(run, multiple=at) for at in other_multiples(settings) for run in standard]
