"""Shows how far a run is: a bar in a terminal, and a file for a program that watches many runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from transformers import TrainerCallback

from stabledllm.runtime.files import write_json
from stabledllm.runtime.showing import bar, in_terminal

EVERY = 2.0
"""Least seconds between two writes of that file."""


class StepBar(TrainerCallback):
    """A bar of the optimizer steps done, in a terminal; elsewhere the lines of the log say as much.

    It replaces the Trainer's bar, which prints a dictionary at every log.
    """

    def __init__(self, label: str):
        self.label, self.bar, self._open = label, None, ExitStack()

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero and in_terminal():
            # Shown at once: a first step may take minutes, and who sees nothing takes the run for one that hangs.
            shown = bar(state.max_steps, self.label, "step", initial=state.global_step)
            self.bar = self._open.enter_context(shown)
            self._done = state.global_step

    def on_step_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.update(state.global_step - self._done)
            self._done = state.global_step

    def on_train_end(self, args, state, control, **_):
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self._open.close()


def close_bars(callbacks: Iterable[TrainerCallback]) -> None:
    """Take the bars of a run away, however it ended: a diverged one gets no ``on_train_end``."""
    for callback in callbacks:
        if isinstance(callback, StepBar):
            callback.close()


class ProgressFile(TrainerCallback):
    """Writes ``step``, ``steps``, the last ``loss``, ``started`` and ``updated`` (in seconds since the epoch)."""

    def __init__(self, path: Path):
        self.path, self.loss, self.first, self.started, self.updated = path, None, 0, 0.0, 0.0

    def on_train_begin(self, args, state, control, **_):
        self.first, self.started, self.updated = state.global_step, time.time(), 0.0
        self._write(state)

    def on_log(self, args, state, control, logs=None, **_):
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args, state, control, **_):
        self._write(state)

    def _write(self, state) -> None:
        now = time.time()
        if state.is_world_process_zero and now - self.updated >= EVERY:
            self.updated = now
            figures = {"step": state.global_step, "steps": state.max_steps, "loss": self.loss}
            write_json(self.path, figures | {"first_step": self.first, "started": self.started, "updated": now})
