"""Shows the state of every run of an experiment, as read from the runs' folders: as a live table or as lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stabledllm.config.settings import TrainSettings
from stabledllm.experiment.duration import time_of_all
from stabledllm.experiment.states import OVER, State

_ORDER = ("running", "failed", "diverged", "waiting", "finished")
EVERY = 60.0
"""Seconds between lines where the output is no terminal."""


class Board:
    """Shows the runs: in a terminal as a table that is redrawn, else as a line for every change and every minute."""

    def __init__(
        self, planned: list[TrainSettings], say: Callable[[str], None], console: Console | None = None, jobs: int = 1
    ):
        self.planned, self.say, self.jobs = planned, say, jobs
        self._told = False
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
        """Read the folders, show what has changed, and return the state of every run."""
        before = [self.states.get(run.out) for run in self.planned]
        # A run that is over stays so: its record, which may be long, is read once.
        states = [
            old if old and old.kind in OVER else State.of(run) for old, run in zip(before, self.planned, strict=True)
        ]
        if self.live:
            self.live.update(self.table(states), refresh=True)
        else:
            self._lines(states)
        self.states = {state.run.out: state for state in states}
        self._tell_time(states)
        return states

    def _tell_time(self, states: list[State]) -> None:
        """Say once how long the runs that are left will take."""
        if not self._told and (text := time_of_all(states, self.jobs)):
            self._told = True
            self.say(text)

    def table(self, states: list[State]) -> Table:
        """The table of the runs: running ones first, then failed and waiting ones; those off the screen are counted."""
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
    """The cells of one run in the table."""
    left = "" if state.seconds_left is None else time.strftime("%H:%M:%S", time.gmtime(state.seconds_left))
    loss = "" if state.loss is None else f"{state.loss:.3g}"
    steps = f"{state.step}/{state.steps}" if state.steps else ""
    kind = f"{state.kind}: {state.error[:60]}" if state.error else state.kind
    return state.name, kind, steps, loss, left
