"""Prints lines on standard output without breaking progress bars; ``--quiet`` leaves only results."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDEST = 100
"""Most columns of a block, however wide the terminal is."""
_NO_BARS = "TQDM_DISABLE"
"""tqdm's own variable, which processes of a run inherit; it must be set before tqdm is imported."""


class _State:
    quiet = False
    hides_bars = False
    """Whether the variable is ours, and not the user's own."""


def be_quiet(quiet: bool = True) -> None:
    """Print only what :func:`answer` is given from here on, and show no bars."""
    if quiet and _NO_BARS not in os.environ:
        os.environ[_NO_BARS], _State.hides_bars = "1", True
    elif not quiet and _State.hides_bars:
        os.environ.pop(_NO_BARS, None)
        _State.hides_bars = False
    _State.quiet = quiet


def is_quiet() -> bool:
    """Whether only results are printed."""
    return _State.quiet


def say(line: str) -> None:
    """Print a line that tells of the work above the progress bars; nothing under ``--quiet``."""
    if not _State.quiet:
        answer(fitting(line, sys.stdout))


def fitting(text: str, stream: TextIO) -> str:
    """The text in lines that fit the terminal, broken between words; as it is where the stream is no terminal.

    A line that stands in columns, as of a table, stays as it is.
    """
    if not _is_terminal(stream):
        return text
    from stabledllm.reports.table import filled, terminal_width

    room = terminal_width()

    def fits(line: str) -> bool:
        return len(line) <= room or "  " in line.strip()

    return "\n".join(line if fits(line) else filled(line, room, _hanging(line)) for line in text.split("\n"))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # a stream that was closed
        return False


def _hanging(line: str) -> int:
    """Blanks before the further lines of a point of a list."""
    numbered = re.match(r" +(\d+\. )?", line)
    return len(numbered[0]) if numbered else 0


def show(block: RenderableType) -> None:
    """Print a block above the progress bars: in a terminal with its colours, elsewhere as plain text.

    Nothing under ``--quiet``.
    Text of others in it must be plain already, since escape sequences are what colours are made of.
    """
    if _State.quiet:
        return
    from rich.console import Console
    from tqdm import tqdm

    from stabledllm.training.screen import plain

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        say(plain(block))
        return
    with tqdm.external_write_mode(file=sys.stdout):
        console.print(block, width=min(console.width, _WIDEST))
    sys.stdout.flush()


def say_all(lines: Iterable[str]) -> None:
    """Print each line as :func:`say` does."""
    for line in lines:
        say(line)


def answer(line: str) -> None:
    """Print a line of the result; its escape sequences are spelt out."""
    from tqdm import tqdm

    tqdm.write(plain_text(line, longest=None, keep="\n\t"), file=sys.stdout)
    sys.stdout.flush()


def answer_all(lines: Iterable[str]) -> None:
    """Print each line as :func:`answer` does."""
    for line in lines:
        answer(line)


def remark(line: str) -> None:
    """Print a note on standard error, where it is in no one's way; nothing under ``--quiet``."""
    if not _State.quiet:
        print(fitting(plain_text(line, longest=None), sys.stderr), file=sys.stderr, flush=True)
