"""How long an experiment will take, said as soon as its first steps have shown how long one takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from transformers import TrainerCallback

from stabledllm.reports.numbers import duration

_SKIPPED, _TIMED = 2, 8
"""Steps that are left out, as the first ones are slow, and steps after which the time is told at the latest."""
_SURE = 2.0
"""Seconds of steps that are enough to tell the time."""


def sentence(runs: int, steps: int, seconds_of_step: float, jobs: int) -> str:
    """About how long the training of ``runs`` runs will take, ``jobs`` at a time."""
    seconds = seconds_of_step * steps * runs / min(jobs, runs)
    beside = f", {min(jobs, runs)} at a time" if min(jobs, runs) > 1 else ""
    return (
        f"about {duration(max(seconds, 1))} to train {runs} runs of {steps:,} steps at {seconds_of_step:.2g} s a step"
        f"{beside}; the final evaluations come on top"
    )


class FirstSteps(TrainerCallback):
    """Times the first steps of an experiment's first run, and says :func:`sentence` once."""

    def __init__(self, runs: int, say: Callable[[str], None]):
        self.runs, self.say = runs, say
        self.started: tuple[float, int] | None = None
        self.told = False

    def on_step_end(self, args, state, control, **_):
        now, step = time.perf_counter(), state.global_step
        if self.told:
            return
        if self.started is None:
            if step >= min(_SKIPPED, state.max_steps - 1):
                self.started = now, step
            return
        seconds, steps = now - self.started[0], step - self.started[1]
        if steps >= _TIMED or seconds > _SURE or step == state.max_steps:
            self.told = True
            self.say(sentence(self.runs, state.max_steps, seconds / steps, 1))
