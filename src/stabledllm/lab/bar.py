"""A progress bar for a measurement, and how long it will take, said first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stabledllm.lab.measure.progress import Progress, Stage
from stabledllm.reports.numbers import duration
from stabledllm.runtime.showing import Bar, bar, note

_LONG = 90.0
"""Seconds from which a quicker way is named."""


class _Bar(Progress):
    def __init__(self, shown: Bar, what: str, plan: Sequence[Stage] | int | None, quicker: str):
        super().__init__(what, plan)
        self.bar, self.quicker = shown, quicker
        self._counted, self._stage_shown = 0, ""

    def announce(self, seconds: float) -> None:
        gradients = sum(stage.forwards for stage in self.plan.values() if stage.gradients)
        backward = f", {gradients:,} of them with gradients" if gradients else ""
        quicker = f"; {self.quicker}" if self.quicker and seconds > _LONG else ""
        note(f"{self.what}: about {duration(max(seconds, 1))} for {self.total:,} forward passes{backward}{quicker}")

    def _say(self) -> None:
        self.bar.total = self.total
        if self._name != self._stage_shown:
            self.bar.set_postfix_str(self._name)
            self._stage_shown = self._name
        if self.done > self._counted:
            self.bar.update(self.done - self._counted)
            self._counted = self.done


@contextmanager
def progress_bar(what: str, plan: Sequence[Stage] | int | None, quicker: str = "") -> Iterator[Progress]:
    """A bar on standard error that counts forward passes, with the stage behind it; how long it takes is said first.

    Args:
        quicker: what is said of a quicker way where it takes long.
    """
    total = plan if plan is None or isinstance(plan, int) else sum(stage.forwards for stage in plan)
    with bar(total, what, "forward") as shown:
        progress = _Bar(shown, what, plan, quicker)
        yield progress
        progress.close()
