"""Tables as HTML on their own, for a notebook."""

from __future__ import annotations

from html import escape

from stabledllm.plain_text import plain_text
from stabledllm.reports.table import Table

_CELL = "padding:2px 10px;white-space:nowrap;text-align:"


def table_html(table: Table) -> str:
    """A table with its title and its note; every text in it is escaped, and a wide one scrolls."""
    words = [table.is_words(i) for i in range(len(table.columns))]
    head = _row("th", table.columns, words)
    body = "".join(_row("td", row, words) for row in table.rows)
    note = paragraph(table.whole_note) if table.whole_note else ""
    return (
        f'<p><b>{_text(table.title)}</b></p><div style="overflow-x:auto"><table><thead>{head}</thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def paragraph(text: str) -> str:
    """A sentence as a paragraph."""
    return f"<p>{_text(text)}</p>"


def lines_of_code(text: str) -> str:
    """Lines of code as they are."""
    return f"<pre>{escape(plain_text(text, longest=None, keep=chr(10)))}</pre>"


def _row(tag: str, texts: tuple[str, ...], words: list[bool]) -> str:
    """A row whose words are set to the left and whose numbers to the right."""
    sides = ("left" if word else "right" for word in words)
    cells = (f'<{tag} style="{_CELL}{side}">{_text(x)}</{tag}>' for x, side in zip(texts, sides, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _text(text: str) -> str:
    return escape(plain_text(text, longest=None))
