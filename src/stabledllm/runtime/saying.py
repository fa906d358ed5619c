"""Printing that never fails: characters that a terminal cannot show are spelt out, and a closed stream is ignored."""

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
    """The text that stands in for characters that a stream's encoding lacks, and the place after them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELT.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error("stabledllm.spell", _spell)


class SafeStream:
    """A text stream whose writes never fail: it keeps the first failure and writes nothing after it.

    All attributes but :meth:`write` and :meth:`flush` are those of the wrapped stream.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text unless an earlier write failed, and return its length."""
        if not isinstance(text, str):
            raise TypeError(f"expected text, found {type(text).__name__}")
        if self.failure is None:
            try:
                self._stream.write(self._spelt(text))
            except (OSError, ValueError) as failure:  # ValueError: a stream that was closed
                self.failure = failure
        return len(text)

    def _spelt(self, text: str) -> str:
        """The text with characters that the stream's encoding lacks spelt in others."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeError:
            return text.encode(encoding, "stabledllm.spell").decode(encoding)
        return text

    def flush(self) -> None:
        """Flush the wrapped stream unless an earlier write failed."""
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


def bars_are_off() -> bool:
    """Whether no progress bars are wanted: tqdm's own variable, which ``--quiet`` sets."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def silent(_: str) -> None:
    """Print nothing: for ranks other than the first."""


@contextmanager
def safe_streams() -> Iterator[None]:
    """While this context is open, output and error are :class:`SafeStream`, and a closed standard input is empty."""
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
    """A sentence on why standard output failed; None where it did not, or where its reader closed the pipe."""
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or getattr(failure, "errno", None) == errno.EPIPE:
        return None
    return f"standard output: expected to print to it, found '{getattr(failure, 'strerror', None) or failure}'."


def _abandon(stream: SafeStream) -> None:
    """Send the rest of a stream's buffer to the null device, so that Python's last flush does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
