"""Prints lines on standard output without breaking progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDEST = 100
"""Most columns of a block, however wide the terminal is."""


def say(line: str) -> None:
    """Print a line above the progress bars; its escape sequences are spelt out."""
    from tqdm import tqdm

    tqdm.write(plain_text(line, longest=None, keep="\n\t"), file=sys.stdout)
    sys.stdout.flush()


def show(block: RenderableType) -> None:
    """Print a block above the progress bars: in a terminal with its colours, elsewhere as plain text.

    Text of others in it must be plain already, since escape sequences are what colours are made of.
    """
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
