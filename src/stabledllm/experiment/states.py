"""The state of every run of an experiment, as read from the runs' folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from stabledllm.config.run_folder import PROGRESS
from stabledllm.config.settings import TrainSettings
from stabledllm.experiment.claims import claimant, divergence, failure, finished
from stabledllm.experiment.grid import title_of

OVER = ("finished", "diverged")
"""The kinds of runs that are not repeated."""


@dataclass(frozen=True)
class State:
    """The state of one run, as its folder shows it."""

    run: TrainSettings
    kind: str
    """One of ``finished``, ``diverged``, ``running``, ``failed`` and ``waiting``."""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """The run's name for readers: its method, its learning rate or budget where several are compared, its seed."""
        return title_of(self.run)

    @classmethod
    def of(cls, run: TrainSettings) -> State:
        """The state of a run, read from its folder."""
        if finished(run):
            error = divergence(run)
            return cls(run, "diverged", error=error) if error else cls(run, "finished")
        if (error := failure(run)) is not None:
            return cls(run, "failed", error=error)
        if claimant(run) is None:
            return cls(run, "waiting")
        try:
            progress = json.loads((Path(run.out) / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(run, "running")
        done = progress["step"] - progress["first_step"]
        pace = (progress["updated"] - progress["started"]) / done if done > 0 else None
        left = pace * (progress["steps"] - progress["step"]) if pace is not None else None
        return cls(run, "running", progress["step"], progress["steps"], progress.get("loss"), left)
