"""The runs of a recipe, each with its method, built once for everything that checks, counts or starts them."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.build import build_method
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.experiment.budget import rows_per_step
from stabledllm.noise.methods import Method


@dataclass(frozen=True)
class Planned:
    """One training run that is to be made: its settings and its method."""

    settings: TrainSettings
    method: Method


def runs_of(settings: TrainSettings | ExperimentSettings) -> list[Planned]:
    """The run of a training recipe, or one run of every method of an experiment.

    Raises:
        UserError: a method is unknown, or its views do not divide the batch.
    """
    if isinstance(settings, TrainSettings):
        return [Planned(settings, build_method(settings.method, settings))]
    methods = [build_method(name, settings.base) for name in settings.methods]
    return [
        Planned(
            settings.base.model_copy(update={"method": method.name, "batch": rows_per_step(method, settings)}), method
        )
        for method in methods
    ]
