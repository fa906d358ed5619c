"""A function applied to parts of a long list in several processes, with the results in order and a bounded backlog."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from stabledllm.errors import UserError

MOST_WORKERS = 8
"""Without ``data.workers``: one process reads for all, and feeds no more than about so many."""
START = "spawn"
"""How a process starts: afresh, since threads and devices of this one do not survive a fork."""
_function: Callable[[Any], Any] | None = None


def default_workers() -> int:
    """The number of processes where none is given: the processors that this one may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def in_parts(items: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` items each, the last one shorter."""
    waiting = iter(items)
    while part := list(islice(waiting, size)):
        yield part


def mapped(
    function: Callable[[Any], Any], parts: Iterable[Any], workers: int, say: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Any, Any]]:
    """Each part with the function's result, in order. At most two parts per process wait at any time.

    Args:
        function: taken to the processes once, by pickling. One that cannot be pickled is applied in this process, which
            ``say`` tells.
        workers: 1 applies it in this process.

    Raises:
        UserError: one that the function raised, or a process that ended.
    """
    if workers > 1 and multiprocessing.current_process().daemon:
        workers = 1  # such a process may start none of its own
    alone = workers == 1
    if not alone and not _can_be_sent(function):
        alone = True
        say("data: rows are tokenised in one process, since this tokenizer cannot be sent to others")
    if alone:
        yield from ((part, function(part)) for part in parts)
        return
    context = multiprocessing.get_context(START)
    with ProcessPoolExecutor(workers, context, _begin, (function,)) as pool:
        try:
            yield from _in_order(pool, parts, 2 * workers)
        except BrokenProcessPool:
            raise UserError(
                "data: expected the processes that tokenise rows to run to their end, found one that ended before (out "
                "of memory, or for lack of `if __name__ == '__main__':` in a script); data.workers=1 does without them."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, parts: Iterable[Any], most: int) -> Iterator[tuple[Any, Any]]:
    waiting: deque = deque()
    for part in parts:
        waiting.append((part, pool.submit(_apply, part)))
        if len(waiting) >= most:
            first, future = waiting.popleft()
            yield first, future.result()
    for part, future in waiting:
        yield part, future.result()


def _can_be_sent(function: Callable) -> bool:
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True


def _begin(function: Callable[[Any], Any]) -> None:
    """Prepare a process: Ctrl-C is its parent's to answer, and it ends when the parent does, however that ended."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = function


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _apply(part: Any) -> Any:
    return _function(part)
