"""Prints lines on standard output without breaking progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from stabledllm.plain_text import plain_text


def say(line: str) -> None:
    """Print a line above the progress bars; its escape sequences are spelt out."""
    from tqdm import tqdm

    tqdm.write(plain_text(line, longest=None, keep="\n\t"), file=sys.stdout)
    sys.stdout.flush()


def say_all(lines: Iterable[str]) -> None:
    """Print each line as :func:`say` does."""
    for line in lines:
        say(line)
