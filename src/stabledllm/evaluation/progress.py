"""The bar of work that several processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stabledllm.evaluation.ranks import Ranks
from stabledllm.runtime.showing import bar


@contextmanager
def shared_bar(total: int, what: str, unit: str, ranks: Ranks) -> Iterator[Callable[[int], None]]:
    """A bar for the work of all ranks, shown by the first, which takes the others to be as far as itself.

    Yields a function that counts; its first call is of what was on disk.
    """
    counted = done = 0
    with bar(total, what, unit) as shown:

        def progress(n: int) -> None:
            nonlocal counted, done
            step = min(n if not counted else n * ranks.shares, total - done)
            counted, done = counted + 1, done + step
            shown.update(step)

        yield progress
