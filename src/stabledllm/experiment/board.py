"""The state of every run of an experiment, off the runs' folders: a live table, or a line now and then in a file."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stabledllm.config.settings import TrainSettings
from stabledllm.experiment.claims import claimant, divergence, failure, finished
from stabledllm.training.progress import PROGRESS

_ORDER = ("running", "failed", "diverged", "waiting", "finished")
OVER = ("finished", "diverged")
"""What a run that is not done again may be."""
EVERY = 60.0
"""Seconds between lines where nobody looks on."""


@dataclass(frozen=True)
class State:
    """One run as its folder shows it."""

    run: TrainSettings
    kind: str
    """``finished``, ``diverged``, ``running``, ``failed`` or ``waiting``."""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.run.method}, seed {self.run.seed}"

    @classmethod
    def of(cls, run: TrainSettings) -> State:
        if finished(run):
            found = divergence(run)
            return cls(run, "diverged", error=found) if found else cls(run, "finished")
        if (error := failure(run)) is not None:
            return cls(run, "failed", error=error)
        if claimant(run) is None:
            return cls(run, "waiting")
        try:
            found = json.loads((Path(run.out) / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(run, "running")
        done = found["step"] - found["first_step"]
        pace = (found["updated"] - found["started"]) / done if done > 0 else None
        left = pace * (found["steps"] - found["step"]) if pace is not None else None
        return cls(run, "running", found["step"], found["steps"], found.get("loss"), left)


class Board:
    """Shows the runs: a table that is drawn again in a terminal, else a line for every change and every minute."""

    def __init__(self, planned: list[TrainSettings], say: Callable[[str], None], console: Console | None = None):
        self.planned, self.say = planned, say
        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.states: dict[str, State] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    def update(self) -> list[State]:
        """Read the folders and show what is new."""
        before = [self.states.get(run.out) for run in self.planned]
        # What is over stays so: its record, which may be long, is read once.
        states = [
            known if known and known.kind in OVER else State.of(run)
            for known, run in zip(before, self.planned, strict=True)
        ]
        if self.live:
            self.live.update(self.table(states), refresh=True)
        else:
            self._lines(states)
        self.states = {state.run.out: state for state in states}
        return states

    def table(self, states: list[State]) -> Table:
        """Running runs first, then failed and waiting ones; what does not fit the screen is counted."""
        counts = Counter(state.kind for state in states)
        title = f"{sum(counts[kind] for kind in OVER)} of {len(states)} runs finished"
        table = Table(title=title, title_justify="left", expand=False)
        for column in ("run", "state", "step", "loss", "left"):
            table.add_column(column, justify="right" if column in ("step", "loss", "left") else "left")
        room = max(4, self.console.height - 8)
        shown = sorted(states, key=lambda state: _ORDER.index(state.kind))
        for state in shown[:room]:
            table.add_row(*cells(state))
        if len(shown) > room:
            table.add_row(f"and {len(shown) - room} more", "", "", "", "")
        return table

    def _lines(self, states: list[State]) -> None:
        changed = [s for s in states if self.states.get(s.run.out, State(s.run, "waiting")).kind != s.kind]
        for state in changed:
            self.say(f"{state.name}: {state.kind}" + (f" ({state.error})" if state.error else ""))
        if time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            running = [f"{s.name} at step {s.step} of {s.steps}" for s in states if s.kind == "running"]
            done = sum(s.kind in OVER for s in states)
            self.say(f"{done} of {len(states)} runs finished; " + ("; ".join(running) or "none is running"))


def cells(state: State) -> tuple[str, ...]:
    """One run's line of the table."""
    left = "" if state.seconds_left is None else time.strftime("%H:%M:%S", time.gmtime(state.seconds_left))
    loss = "" if state.loss is None else f"{state.loss:.3g}"
    steps = f"{state.step}/{state.steps}" if state.steps else ""
    kind = f"{state.kind}: {state.error[:60]}" if state.error else state.kind
    return state.name, kind, steps, loss, left
