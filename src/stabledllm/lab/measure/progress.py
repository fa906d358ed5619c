"""How a measurement tells how far it is, and first how long it will take; whoever starts it decides what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tell = Callable[[int, int | None, str], None]
"""Called with the forward passes so far, all of them (None where unknown), and what is being measured."""
_SURE = 0.3
"""Seconds of measuring from which the time of the whole is told."""


@dataclass(frozen=True)
class Stage:
    """A part of a measurement, and the forward passes that are planned for it."""

    name: str
    forwards: int
    gradients: bool = False
    """Whether each forward pass is followed by a backward pass."""


class Progress:
    """The forward passes of one measurement so far, and how many there will be.

    The total is that of the plan. Where draws decide how many views a row has, the plan is a mean: what a stage took is
    put in its place as it ends, so that the total is never passed and is reached exactly.

    Args:
        what: names the measurement.
        plan: its stages in order, or the forward passes of its only stage; None where they are unknown.
        tell: called after every change.

    >>> progress = Progress("decompose", [Stage("A, B, C", 8)], tell=print)
    >>> progress.stage("A, B, C")
    0 8 decompose: A, B, C
    >>> progress.update(4)
    4 8 decompose: A, B, C
    >>> progress.close()
    4 4 decompose: A, B, C
    """

    def __init__(self, what: str, plan: Sequence[Stage] | int | None = None, tell: Tell | None = None):
        stages = [Stage("", plan)] if isinstance(plan, int) else plan
        self.what, self.done, self._tell = what, 0, tell
        self.plan = {stage.name: stage for stage in stages or ()}
        self.total = None if plan is None else sum(stage.forwards for stage in self.plan.values())
        self.gradient_cost = 1.0
        """Seconds of a forward pass with its backward pass, over those of a forward pass alone."""
        self._name, self._in_stage = "", 0
        self._first: tuple[float, int] | None = None
        self._told = self.total is None

    def update(self, forwards: int) -> None:
        """Count more forward passes."""
        self.done += forwards
        self._in_stage += forwards
        self._count()
        self._estimate()
        self._say()

    def stage(self, name: str) -> None:
        """Begin the part of the measurement of that name; the one before has ended."""
        self._end_stage()
        self._name = name
        self._say()

    def close(self) -> None:
        """Say that all has been measured."""
        self._end_stage()
        self.plan = {}
        self._count()
        self._say()

    def seconds_of_all(self, seconds_of_one: float) -> float:
        """Seconds of the whole, from those of a forward pass of the stage that is under way."""
        costs = {False: 1.0, True: self.gradient_cost}
        now = costs[self._name in self.plan and self.plan[self._name].gradients]
        return seconds_of_one / now * sum(stage.forwards * costs[stage.gradients] for stage in self.plan.values())

    def announce(self, seconds: float) -> None:
        """Show how long all will take; called once, as soon as it is known."""

    def _end_stage(self) -> None:
        self.plan.pop(self._name, None)
        self._in_stage = 0
        self._count()

    def _count(self) -> None:
        if self.total is not None:
            planned = sum(stage.forwards for name, stage in self.plan.items() if name != self._name)
            mine = self.plan[self._name].forwards if self._name in self.plan else 0
            self.total = self.done + planned + max(mine - self._in_stage, 0)

    def _estimate(self) -> None:
        """Announce the time of the whole once some batches have been measured; the first is left out, as it is slow."""
        now = time.perf_counter()
        if self._told or self._first is None:
            self._first = self._first or (now, self.done)
            return
        started, before = self._first
        if now - started > _SURE and self.done > before:
            self._told = True
            self.announce(self.seconds_of_all((now - started) / (self.done - before)))

    def _say(self) -> None:
        if self._tell:
            self._tell(self.done, self.total, self.what + (f": {self._name}" if self._name else ""))
