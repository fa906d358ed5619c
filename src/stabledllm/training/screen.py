"""What a run shows of itself while it trains, and how its blocks become plain text."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, RenderableType

WIDTH = 80
"""Columns of a block that is printed as plain text."""


@dataclass(frozen=True)
class Screen:
    """What is shown beside the lines on results, which are always told; on the first rank only."""

    block: bool = True
    """The block before the first step: model, rows, the first row decoded, method, steps, device."""
    lines: bool = True
    """A line for every log, evaluation and checkpoint."""
    show: Callable[[RenderableType], None] | None = None
    """Prints the block in a terminal; without it the block is told as plain text."""

    def tell(self, block: RenderableType, say: Callable[[str], None]) -> None:
        """Show a block where blocks are wanted."""
        if self.block:
            self.show(block) if self.show else say(plain(block))


QUIET = Screen(block=False, lines=False)
"""Only the lines on results."""


def plain(block: RenderableType, width: int = WIDTH) -> str:
    """A block as text of at most ``width`` columns, without colours or other control characters."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(block)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
