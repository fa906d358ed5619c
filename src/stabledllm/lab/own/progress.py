"""What is shown while a laboratory measures: a caller's own function, a bar where tqdm is installed, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from stabledllm.lab.measure.progress import Progress, Tell


@contextmanager
def shown(what: str, total: int | None, tell: Tell | bool | None) -> Iterator[Progress]:
    """The progress of one measurement.

    Args:
        tell: called with (forward passes, all of them or None, what); None is a bar where tqdm is installed; False
            nothing.
    """
    if tell in (None, True):
        if find_spec("tqdm") is not None:
            from stabledllm.lab.bar import progress_bar

            with progress_bar(what, total) as progress:
                yield progress
            return
        tell = None
    yield Progress(what, total, tell or None)
