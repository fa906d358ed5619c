"""An experiment: ``stabledllm experiment``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stabledllm.config.settings.training import TrainSettings
from stabledllm.config.settings.values import PathText, Seed
from stabledllm.config.twice import refuse_equal_methods, refuse_equal_seeds
from stabledllm.config.typed import Strict


class ExperimentSettings(Strict):
    """Methods x seeds, each an own training run."""

    base: TrainSettings = TrainSettings()
    """The run that every method and seed varies."""
    methods: list[str] = Field(["standard", "ppots", "mirror", "ppots+mirror"], min_length=1)
    seeds: list[Seed] = Field([42, 731, 20231], min_length=1)
    equal: Literal["compute", "steps"] = "compute"
    """``compute``: Standard's forward passes for every method to within one step, under ``epochs`` too: rows a step by
    the method's mean cost (half for 2 views), steps by what it will draw. ``steps``: the same rows and steps, as in the
    paper, whatever they cost."""
    baselines: list[str] = ["standard", "clipped"]
    """Methods whose best run a method's worst run is compared with."""
    out: PathText = "runs/experiment"

    @field_validator("methods", "baselines")
    @classmethod
    def _methods_once(cls, methods: list[str]) -> list[str]:
        return refuse_equal_methods(methods)

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: list[int]) -> list[int]:
        return refuse_equal_seeds(seeds)
