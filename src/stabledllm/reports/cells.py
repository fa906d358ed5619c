"""Tables as HTML on their own, for a notebook."""

from __future__ import annotations

from html import escape

from stabledllm.plain_text import plain_text
from stabledllm.reports.tables import Table

_LEFT, _RIGHT = ' style="text-align:left"', ' style="text-align:right"'


def table_html(table: Table) -> str:
    """A table with its title and its note; every text in it is escaped."""
    head = "".join(_cell("th", text, i) for i, text in enumerate(table.columns))
    body = "".join(f"<tr>{''.join(_cell('td', text, i) for i, text in enumerate(row))}</tr>" for row in table.rows)
    note = paragraph(table.note) if table.note else ""
    return f"<p><b>{_text(table.title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def paragraph(text: str) -> str:
    """A sentence as a paragraph."""
    return f"<p>{_text(text)}</p>"


def _cell(tag: str, text: str, i: int) -> str:
    return f"<{tag}{_LEFT if i == 0 else _RIGHT}>{_text(text)}</{tag}>"


def _text(text: str) -> str:
    return escape(plain_text(text, longest=None))
