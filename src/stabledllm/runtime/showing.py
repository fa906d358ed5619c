"""Shows that work goes on: a bar in a terminal, elsewhere a line now and then, and nothing for work that is soon done.

All of it goes to standard error, from the first of several ranks alone, and says nothing that a result does not say.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm import tqdm

from stabledllm.runtime.launched import is_main_process
from stabledllm.runtime.saying import SafeStream, bars_are_off

SILENT_FOR = 3.0
"""Seconds of work before a first line says what is going on."""
EVERY = 60.0
"""Seconds between two lines on the same work where there is no terminal."""
_HIDDEN: ContextVar[bool] = ContextVar("hidden", default=False)
_SURROUNDING: ContextVar[Callable[[], None] | None] = ContextVar("surrounding", default=None)
"""Takes away what a surrounding :func:`busy` shows, once something within it shows more."""


class Bar(Protocol):
    """A count of work done, of ``total``, which may change where draws decide how much there is."""

    total: int | None

    def update(self, n: int = 1) -> object:
        """Count ``n`` more."""

    def set_postfix_str(self, s: str) -> None:
        """Say which part of the work is going on."""


@contextmanager
def without_bars() -> Iterator[None]:
    """While this context is open, :func:`bar` and :func:`busy` show nothing."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def in_terminal() -> bool:
    """Whether standard error can show a bar: a terminal, or a notebook."""
    notebook = type(sys.stderr).__module__ == "ipykernel.iostream"
    return notebook or bool(sys.stderr is not None and sys.stderr.isatty())


def _shown() -> bool:
    return is_main_process() and not _HIDDEN.get() and not bars_are_off()


def _size() -> dict[str, Any]:
    """How wide a bar is, for tqdm: as wide as the terminal is at any time.

    One that does not know its size, as those that scripts and containers open, has that of COLUMNS and LINES, else 80
    columns; tqdm would take it for one of no columns, and show nothing.
    """
    try:
        if all(os.get_terminal_size(sys.stderr.fileno())):
            return {"dynamic_ncols": True}
    except (OSError, ValueError, AttributeError):
        pass
    columns, lines = shutil.get_terminal_size()
    return {"ncols": columns - 1, "nrows": lines}


@contextmanager
def bar(total: int | None, what: str, unit: str, *, initial: int = 0) -> Iterator[Bar]:
    """Yields a count of the work done, shown as a bar in a terminal and elsewhere as a line at times.

    Args:
        total: all of the work; None where it is not known. unit: one of it, in the singular.
        initial: how much of it was done before.
    """
    if (end_surrounding := _SURROUNDING.get()) is not None:
        end_surrounding()
    if not _shown():
        yield _Hidden()
    elif in_terminal():
        with tqdm(total=total, initial=initial, desc=what, unit=unit, leave=False, **_size()) as shown:
            yield shown
            shown.refresh()  # the last count, which tqdm leaves out where it comes soon after another
    else:
        yield _Lines(total, what, unit, initial)


def note(line: str) -> None:
    """Print a line above the bars on standard error, where bars are shown."""
    if _shown():
        _print(line)


class _Hidden:
    total: int | None = None

    def update(self, n: int = 1) -> None:
        """Show nothing."""

    def set_postfix_str(self, s: str) -> None:
        """Show nothing."""


class _Lines:
    """A count that prints a line after the first seconds and then every minute."""

    def __init__(self, total: int | None, what: str, unit: str, initial: int = 0):
        self.total, self.what, self.unit, self.done, self.stage = total, what, unit, initial, ""
        self.first, self.started = initial, time.monotonic()
        self.next = self.started + SILENT_FOR

    def set_postfix_str(self, s: str) -> None:
        self.stage = s

    def update(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now >= self.next and (self.total is None or self.done < self.total):
            self.next = now + EVERY
            _print(self.line(now))

    def line(self, now: float) -> str:
        """What is done of how much, and about how long the rest takes."""
        of = f" of {self.total:,}" if self.total else ""
        text = f"{self.what}: {self.done:,}{of} {self.unit}s"
        if self.total and self.done > self.first:
            left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
            text += f", about {duration(left)} left"
        return f"{text} ({self.stage})" if self.stage else text


@contextmanager
def busy(what: str) -> Iterator[None]:
    """While this context is open, ``what`` is shown if it takes longer than :data:`SILENT_FOR`.

    In a terminal with the seconds so far, and removed at the end; elsewhere as one line. What is within another such
    context shows nothing, and a :func:`bar` within it takes its place.
    """
    if not _shown() or _SURROUNDING.get() is not None:
        yield
        return
    over = threading.Event()
    show: Callable[[str, threading.Event], None] = _tick if in_terminal() else _tell
    shower = threading.Thread(target=show, args=(what, over), daemon=True)
    shower.start()

    def end() -> None:
        over.set()
        shower.join()  # a bar that begins while this one is still there would stand a line below it

    token = _SURROUNDING.set(end)
    try:
        yield
    finally:
        _SURROUNDING.reset(token)
        end()


def _tell(what: str, over: threading.Event) -> None:
    if not over.wait(SILENT_FOR):
        _print(f"{what} ...")


def _tick(what: str, over: threading.Event) -> None:
    if over.wait(SILENT_FOR):
        return
    started = time.monotonic() - SILENT_FOR
    with tqdm(bar_format="{desc}", leave=False, **_size()) as shown:
        while True:
            shown.set_description_str(f"{what} ... {time.monotonic() - started:.0f} s")
            if over.wait(1.0):
                return


def _print(line: str) -> None:
    stream = SafeStream(sys.stderr)
    stream.write(f"{line}\n")
    stream.flush()


def duration(seconds: float) -> str:
    """A length of time as people say it.

    >>> duration(8), duration(95), duration(5000)
    ('8 s', '2 min', '1 h 23 min')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
