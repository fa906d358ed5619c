"""A progress bar of tqdm for a measurement."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from stabledllm.lab.measure.progress import Progress, Stage
from stabledllm.reports.numbers import duration

_LONG = 90.0
"""Seconds from which a quicker way is named."""


class _Bar(Progress):
    def __init__(self, bar: tqdm, plan: Sequence[Stage] | int | None, quicker: str):
        super().__init__(bar.desc, plan)
        self.bar, self.quicker = bar, quicker
        self.bar.total = self.total

    def announce(self, seconds: float) -> None:
        gradients = sum(stage.forwards for stage in self.plan.values() if stage.gradients)
        backward = f", {gradients:,} of them with gradients" if gradients else ""
        quicker = f"; {self.quicker}" if self.quicker and seconds > _LONG else ""
        text = f"{self.what}: about {duration(max(seconds, 1))} for {self.total:,} forward passes{backward}{quicker}"
        tqdm.write(text, file=sys.stderr)

    def _say(self) -> None:
        self.bar.total = self.total
        if self._name:
            self.bar.set_postfix_str(self._name, refresh=False)
        if self.done > self.bar.n:
            self.bar.update(self.done - self.bar.n)
        else:
            self.bar.refresh()


@contextmanager
def progress_bar(what: str, plan: Sequence[Stage] | int | None, quicker: str = "") -> Iterator[Progress]:
    """A bar on standard error that counts forward passes, with the stage behind it; how long it takes is said first.

    Args:
        quicker: what is said of a quicker way where it takes long.
    """
    with tqdm(desc=what, unit="fwd") as bar:
        progress = _Bar(bar, plan, quicker)
        yield progress
        progress.close()
