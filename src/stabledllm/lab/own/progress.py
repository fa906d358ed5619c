"""What is shown while a laboratory measures: a caller's own function, a bar where tqdm is installed, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from stabledllm.lab.measure.progress import Progress, Stage, Tell


@contextmanager
def shown(what: str, plan: Sequence[Stage] | int | None, tell: Tell | bool | None) -> Iterator[Progress]:
    """The progress of one measurement.

    Args:
        plan: the stages, or the forward passes of the only one; None where they are unknown.
        tell: called with (forward passes, all of them or None, what); None is a bar where tqdm is installed; False
            nothing.
    """
    if tell in (None, True):
        if find_spec("tqdm") is not None:
            from stabledllm.lab.bar import progress_bar

            with progress_bar(what, plan) as progress:
                yield progress
            return
        tell = None
    progress = Progress(what, plan, tell or None)
    yield progress
    progress.close()
