"""A progress bar of tqdm for a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from stabledllm.lab.measure.progress import Progress


class _Bar(Progress):
    def __init__(self, what: str, total: int | None, bar: tqdm):
        super().__init__(what, total)
        self.bar = bar

    def update(self, forwards: int) -> None:
        self.bar.update(forwards)

    def stage(self, name: str) -> None:
        self.bar.set_postfix_str(name)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Progress]:
    """A bar on standard error that counts forward passes, with the stage behind it."""
    with tqdm(total=total, desc=what, unit="fwd") as bar:
        yield _Bar(what, total, bar)  # a bar that TQDM_DISABLE switched off knows neither
