"""A table of text, and its lines in a terminal: none wider than that, no word and no number broken."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"
"""What stands for an unknown number."""
_GAP = 2
_LEAST, _USUAL = 40, 80
_TEXT_ROOM = 24
"""Least width of a column of sentences beside others; below it the column gets lines of its own."""
_PIECE = re.compile(r"\S+?(?:(?<=\w)\+(?=[a-z])|\s+|$)")
"""A word, or a part of a method with its plus sign: a line may end behind each."""


def terminal_width() -> int:
    """The columns of the terminal (or ``COLUMNS``, or 80 where there is none), at least 40."""
    return max(shutil.get_terminal_size((_USUAL, 24)).columns, _LEAST)


def filled(text: str, width: int | None = None, indent: int = 0) -> str:
    """A sentence in lines of at most ``width`` columns, the terminal's by default.

    ``0.49 ± 0.02`` and ``m = 6`` stay together.

    Args:
        indent: blanks before every line but the first.
    """
    together = re.sub(r" (±|=) ", "\u00a0\\1\u00a0", text).replace(" %", "\u00a0%")
    lines = textwrap.wrap(
        together,
        width or terminal_width(),
        break_long_words=False,
        break_on_hyphens=False,
        subsequent_indent=" " * indent,
    )
    return "\n".join(lines).replace("\u00a0", " ")


@dataclass(frozen=True)
class Table:
    """A table: columns and rows of text, where the first column holds the rows' names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    more: str = ""
    """What explains the columns behind those that answer; it stands behind the note where all columns are shown."""
    answers: int | None = None
    """How many of the first columns answer the question, and are shown however narrow the terminal is; None: all."""

    def text(self, width: int | None = None, wide: bool = True) -> str:
        """The table as plain text.

        Args:
            width: most columns of a line, the terminal's by default.
            wide: whether all columns are shown, in several blocks where they do not fit beside each other; else those
                that answer and as many others as fit, and a line says how many there are more.
        """
        room = width or terminal_width()
        shown = len(self.columns) if wide or self.answers is None else self._fitting(room)
        lines = [*filled(self.title, room).splitlines()]
        for i, block in enumerate(self._blocks(room, shown)):
            lines += [""] * (i > 0) + self._lines(block)
        left = len(self.columns) - shown
        if note := self.note if left else self.whole_note:
            lines.append(filled(note, room))
        if left:
            lines.append(filled(f"{left} more columns with --wide, and in the report.", room))
        return "\n".join(lines)

    @property
    def whole_note(self) -> str:
        """What explains all columns."""
        return " ".join(filter(None, (self.note, self.more)))

    def __str__(self) -> str:
        return self.text()

    def is_words(self, column: int) -> bool:
        """Whether a column holds words, which are set to the left, and no numbers."""
        cells = [row[column] for row in self.rows if row[column] not in ("", NONE)]
        return column == 0 or (bool(cells) and all(cell[0].isalpha() for cell in cells))

    def _cells(self, column: int) -> list[str]:
        return [self.columns[column], *(row[column] for row in self.rows)]

    def _natural(self, column: int) -> int:
        return max(len(cell) for cell in self._cells(column))

    def _least(self, column: int) -> int:
        """The longest piece of a column, which no line may break."""
        return max(len(piece.rstrip()) for cell in self._cells(column) for piece in _PIECE.findall(cell) or [""])

    def _fitting(self, room: int) -> int:
        """How many of the first columns are shown: those that answer, and others while they fit beside them."""
        used = sum(self._natural(i) + _GAP for i in range(self.answers)) - _GAP
        for i in range(self.answers, len(self.columns)):
            used += self._natural(i) + _GAP
            if used > room:
                return i
        return len(self.columns)

    def _blocks(self, room: int, shown: int) -> list[list[tuple[int, int]]]:
        """The columns of each block with their widths; every block begins with the rows' names."""
        name = (0, min(self._natural(0), max(self._least(0), room // 2)))
        blocks = [[name]]
        for i in range(1, shown):
            free = room - sum(width + _GAP for _, width in blocks[-1])
            alone = room - name[1] - _GAP
            width = self._natural(i)
            if width > free and len(blocks[-1]) > 1 and (width <= alone or free < max(self._least(i), _TEXT_ROOM)):
                blocks.append([name])
                free = alone
            blocks[-1].append((i, width if width <= free else max(free, self._least(i))))
        return blocks

    def _lines(self, block: Sequence[tuple[int, int]]) -> list[str]:
        out = []
        for cells in (self.columns, *self.rows):
            wrapped = [_wrapped(cells[i], width) for i, width in block]
            for k in range(max(map(len, wrapped))):
                parts = zip(block, wrapped, strict=True)
                line = [self._aligned(i, width, lines[k] if k < len(lines) else "") for (i, width), lines in parts]
                out.append((" " * _GAP).join(line).rstrip())
            if cells is self.columns:
                out.append((" " * _GAP).join("-" * width for _, width in block))
        return out

    def _aligned(self, column: int, width: int, text: str) -> str:
        return text.ljust(width) if self.is_words(column) else text.rjust(width)


def _wrapped(cell: str, width: int) -> list[str]:
    """A cell's lines: broken between words, and behind a plus sign of a method."""
    lines = [""]
    for piece in _PIECE.findall(cell):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]
