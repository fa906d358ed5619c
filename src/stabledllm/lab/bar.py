"""The progress of a measurement: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stabledllm.lab.measure.progress import Progress
from stabledllm.runtime.showing import Bar, bar


class _Bar(Progress):
    def __init__(self, shown: Bar, what: str, total: int | None):
        super().__init__(what, total)
        self.bar = shown

    def update(self, forwards: int) -> None:
        self.bar.update(forwards)

    def stage(self, name: str) -> None:
        self.bar.set_postfix_str(name)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Progress]:
    """Forward passes counted on standard error, with the stage behind them."""
    with bar(total, what, "forward") as shown:
        yield _Bar(shown, what, total)
