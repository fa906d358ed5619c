"""How long an experiment will take, said as soon as its first steps have shown how long one takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stabledllm.config.settings import TrainSettings
from stabledllm.experiment.states import OVER, State
from stabledllm.reports.numbers import duration

_EVERY = 1.0
"""Seconds between two looks at a run's progress."""


def sentence(steps: Sequence[int], seconds_of_step: float, jobs: int) -> str:
    """About how long the training of runs of so many steps each will take, ``jobs`` at a time."""
    runs, fewest, most = len(steps), min(steps), max(steps)
    seconds = seconds_of_step * sum(steps) / min(jobs, runs)
    each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    what = f"{'one run' if runs == 1 else f'{runs} runs'} of {each} step{'' if most == 1 else 's'}"
    beside = f", {min(jobs, runs)} at a time" if min(jobs, runs) > 1 else ""
    return (
        f"about {duration(max(seconds, 1))} to train {what} at {seconds_of_step:.2g} s a step"
        f"{beside}; the final evaluations come on top"
    )


def time_of_all(states: Sequence[State], jobs: int) -> str | None:
    """The sentence for the runs that are not over, by the first one that knows its pace; None before one does."""
    known = next((s for s in states if s.seconds_left and s.steps > s.step), None)
    if known is None:
        return None
    left = [_steps_of(state, known) for state in states if state.kind not in (*OVER, "failed")]
    return sentence(left, known.seconds_left / (known.steps - known.step), jobs)


def _steps_of(state: State, known: State) -> int:
    """The steps of a run: as many as the known run's, in the proportion in which both were asked for."""
    asked, of_known = state.run.steps, known.run.steps
    return round(known.steps * asked / of_known) if asked and of_known else known.steps


@contextmanager
def telling_time(planned: Sequence[TrainSettings], say: Callable[[str], None]) -> Iterator[None]:
    """While this process makes the runs one after the other: say once how long they take, with those made elsewhere."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_EVERY):
            states = [State.of(run) for run in planned]
            if text := time_of_all(states, jobs=sum(state.kind == "running" for state in states)):
                say(text)
                return

    teller = threading.Thread(target=look, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
