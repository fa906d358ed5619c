"""HiTab's tables as text: the official JSON as Markdown or HTML, with merged cells and the hierarchy of headers.

Official format (``tables/raw/ID.json``): ``texts``, a matrix in which only the top left cell of a merged region has
text; ``merged_regions``; ``top_header_rows_num`` and ``left_header_columns_num``; ``top_root`` and ``left_root``, the
headers as trees of cells; ``title``.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.tasks.files import parse_object
from stabledllm.tasks.text_files import read_text

_LEVEL = "- "
"""Written before a row's header once for each level of the hierarchy above it; the source indents the header."""


@dataclass(frozen=True)
class Span:
    """A merged region of cells, clipped to the table; its ends are included."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class HierarchicalTable:
    """A rectangular table. ``depth``: each row's depth in the tree of the left headers."""

    title: str
    texts: tuple[tuple[str, ...], ...]
    spans: tuple[Span, ...]
    header_rows: int
    header_columns: int
    depth: dict[int, int]

    def markdown(self) -> str:
        """The table as Markdown: one header line, each column's headers joined by `` > `` from the top, then the rows.

        Markdown has no merged cells: the text of a merged cell is repeated in each of its places. ``|`` is escaped.
        """
        full = self._filled()
        names = [_path(row[c] for row in full[: self.header_rows]) for c in range(len(full[0]))]
        lines = [names, ["---"] * len(names), *self._indented(full)[self.header_rows :]]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        """The table as HTML, header cells as ``th``, with no attributes but ``rowspan`` and ``colspan``."""
        at = {(s.top, s.left): s for s in self.spans}
        covered = {(r, c) for s in self.spans for r in range(s.top, s.bottom + 1) for c in range(s.left, s.right + 1)}
        rows, texts = [], self._indented(self.texts)
        for r, row in enumerate(texts):
            cells = []
            for c, text in enumerate(row):
                span = at.get((r, c))
                if span is None and (r, c) in covered:
                    continue
                name = "th" if r < self.header_rows or c < self.header_columns else "td"
                cells.append(f"<{name}{_attributes(span)}>{html.escape(text, quote=False)}</{name}>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return "\n".join(["<table>", *rows, "</table>"])

    def _filled(self) -> list[list[str]]:
        """The matrix with the text of every merged region in each of its places."""
        full = [list(row) for row in self.texts]
        for s in self.spans:
            for r in range(s.top, s.bottom + 1):
                full[r][s.left : s.right + 1] = [self.texts[s.top][s.left]] * (s.right + 1 - s.left)
        return full

    def _indented(self, matrix) -> list[list[str]]:
        """The matrix with a mark of its level in the hierarchy before the first cell of each row."""
        rows = [list(row) for row in matrix]
        if self.header_columns == 1:  # with more columns the hierarchy is in the columns themselves
            for r, depth in self.depth.items():
                if self.header_rows <= r < len(rows) and rows[r][0]:
                    rows[r][0] = _LEVEL * depth + rows[r][0]
        return rows


def read_table(path: Path, needed_by: str) -> HierarchicalTable:
    """Read the table in an official JSON file.

    Args:
        needed_by: the row that names the table, for errors.

    Raises:
        UserError: no such file, broken JSON, or no matrix of texts.
    """
    if not path.is_file():
        raise UserError(f"{needed_by}: expected its table in {path}, found no such file.")
    return table_of(parse_object(read_text(path), str(path)), str(path))


def table_of(raw: object, origin: str) -> HierarchicalTable:
    """The table of an official JSON object.

    Raises:
        UserError: no matrix of texts, or a header that is larger than the table.
    """
    texts = raw.get("texts") if isinstance(raw, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(row, list) and row for row in texts):
        raise UserError(f"{origin}: expected rows of cells under 'texts', found none.")
    width = max(len(row) for row in texts)
    matrix = tuple(tuple(_cell(x) for x in (*row, *[""] * (width - len(row)))) for row in texts)
    header_rows = _count(raw, "top_header_rows_num", 1, len(matrix), origin)
    header_columns = _count(raw, "left_header_columns_num", 1, width, origin)
    title = raw.get("title")
    return HierarchicalTable(
        title=_cell(title),
        texts=matrix,
        spans=_spans(raw.get("merged_regions"), len(matrix), width, origin),
        header_rows=header_rows,
        header_columns=header_columns,
        depth=_depths(raw.get("left_root")),
    )


def _cell(value: object) -> str:
    """The text of a cell, on one line."""
    return "" if value is None else " ".join(str(value).split())


def _count(raw: dict, key: str, default: int, most: int, origin: str) -> int:
    count = raw.get(key, default)
    if type(count) is not int or not 0 <= count <= most:
        raise UserError(f"{origin}: expected '{key}' from 0 to {most}, found {count!r}.")
    return count


def _spans(regions: object, rows: int, columns: int, origin: str) -> tuple[Span, ...]:
    """The merged regions of more than one cell, clipped to the table; if two overlap, the first counts."""
    out: list[Span] = []
    covered: set[tuple[int, int]] = set()
    for region in regions or []:
        try:
            ends = [int(region[key]) for key in ("first_row", "first_column", "last_row", "last_column")]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{origin}: expected first_row, first_column, last_row and last_column in 'merged_regions', "
                f"found {region!r}."
            ) from None
        span = Span(max(ends[0], 0), max(ends[1], 0), min(ends[2], rows - 1), min(ends[3], columns - 1))
        places = {(r, c) for r in range(span.top, span.bottom + 1) for c in range(span.left, span.right + 1)}
        if len(places) > 1 and not places & covered:
            covered |= places
            out.append(span)
    return tuple(out)


def _depths(root: object) -> dict[int, int]:
    """The depth of each row below the tree's virtual root; the least one for a row with several header cells."""
    out: dict[int, int] = {}
    waiting = [(node, 0) for node in _children(root)]
    while waiting:
        node, depth = waiting.pop()
        row = node.get("row_index")
        if type(row) is int and row >= 0:
            out[row] = min(out.get(row, depth), depth)
        waiting += [(child, depth + 1) for child in _children(node)]
    return {row: depth for row, depth in out.items() if depth}


def _children(node: object) -> list[dict]:
    children = node.get("children") if isinstance(node, dict) else None
    return [child for child in children if isinstance(child, dict)] if isinstance(children, list) else []


def _path(texts) -> str:
    """The header texts from the top down, joined, without empty ones and repetitions."""
    return " > ".join(dict.fromkeys(text for text in texts if text))


def _attributes(span: Span | None) -> str:
    if span is None:
        return ""
    sizes = {"rowspan": span.bottom + 1 - span.top, "colspan": span.right + 1 - span.left}
    return "".join(f' {name}="{size}"' for name, size in sizes.items() if size > 1)
