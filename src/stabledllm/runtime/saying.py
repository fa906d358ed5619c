"""Printing that never loses work: what a terminal cannot show is spelt out, and one that is gone is done without."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_SPELT = {"±": "+/-", "×": "x", "²": "^2", "–": "-", "…": "...", "‖": "|", "≤": "<=", "≥": ">="}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What a stream prints for characters that its encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELT.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error("stabledllm.spell", _spell)


class SafeStream:
    """A text stream that takes everything; the first failure is kept, and nothing is written after it.

    All but :meth:`write` and :meth:`flush` is the stream's own.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected text, found {type(text).__name__}")
        if self.failure is None:
            try:
                self._stream.write(self._spelt(text))
            except (OSError, ValueError) as failure:  # ValueError: a stream that was closed
                self.failure = failure
        return len(text)

    def _spelt(self, text: str) -> str:
        """The text with what the stream's encoding has not in other characters."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeError:
            return text.encode(encoding, "stabledllm.spell").decode(encoding)
        return text

    def flush(self) -> None:
        if self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as failure:
                self.failure = failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(line: str) -> None:
    """Print a line to standard output."""
    stream = SafeStream(sys.stdout)
    stream.write(f"{line}\n")
    stream.flush()


@contextmanager
def safe_streams() -> Iterator[None]:
    """Within, standard output and error are :class:`SafeStream`; standard input that was closed is empty."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe = tuple(SafeStream(stream) for stream in before)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
            if stream.failure is not None:
                _abandon(stream)
        sys.stdout, sys.stderr = before


def lost_output() -> str | None:
    """Why standard output did not take everything, where that is not what its reader chose."""
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or getattr(failure, "errno", None) == errno.EPIPE:
        return None
    return f"standard output: expected to print to it, found '{getattr(failure, 'strerror', None) or failure}'."


def _abandon(stream: SafeStream) -> None:
    """What is left in the stream's buffer goes nowhere, so that Python's own last flush does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
