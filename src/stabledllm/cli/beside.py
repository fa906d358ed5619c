"""Work of a command in a process beside it: what it prints is kept until the command asks for it."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from stabledllm.errors import UserError

START = "spawn"
"""How the process starts: afresh, since threads and devices of this one do not survive a fork."""


class Started:
    """A function that runs in another process."""

    def __init__(self, work: Future):
        self._work = work

    def printed(self) -> str:
        """Wait for its end, and return what it printed.

        Raises:
            UserError: one that it raised, or its process was ended.
        """
        try:
            return self._work.result()
        except BrokenProcessPool:
            raise UserError(
                "a process beside this one: expected it to run to its end, found that it was ended (out of memory?); "
                "the same command goes on from here."
            ) from None


class Beside:
    """A process beside this one, which does one piece of work after the other."""

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def start(self, work: Callable[..., None], *arguments: object) -> Started:
        """Begin ``work`` there once all that was started before has ended."""
        return Started(self._pool.submit(_printed, work, arguments))


@contextmanager
def beside(threads: int) -> Iterator[Beside]:
    """While this context is open, there is another process, with ``threads`` threads; it is left once its work is done.

    The process ends when this one does, however that ends.
    """
    context = multiprocessing.get_context(START)
    with ProcessPoolExecutor(1, context, _begin, (threads,)) as pool:
        try:
            yield Beside(pool)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _begin(threads: int) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the bar on the screen is the parent's; read when torch imports tqdm
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _printed(work: Callable[..., None], arguments: tuple) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        work(*arguments)
    return text.getvalue()
