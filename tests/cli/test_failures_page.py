"""The page on refusals quotes messages as the sources have them, so that it cannot rot."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.cli.runner import ROOT

PAGE = ROOT / "docs" / "failures.md"


def quoted() -> list[str]:
    """The message of each row of a table that is headed by ``message``, in pieces between what differs."""
    found, messages = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("|") else []
        messages = bool(cells) and (messages or cells[0] == "message")
        if messages and cells[0] not in ("message", "---"):
            assert len(cells) == 3, f"{line}: expected three columns, with every other bar escaped"
            found.append(cells[0])
    return found


@cache
def texts() -> str:
    """Every text constant of the sources; parts of f-strings apart, as their values are not known."""
    parts = []
    for path in sorted((ROOT / "src" / "stabledllm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts.append("\0".join(v.value for v in node.values if isinstance(v, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
    return "\1".join(parts)


def test_the_page_has_rows():
    assert len(quoted()) > 20


@pytest.mark.parametrize("row", quoted())
def test_every_message_is_in_the_sources(row):
    quotes = re.findall(r"`([^`]+)`", row)
    assert quotes, f"{row}: expected a message in backquotes"
    pieces = [piece.strip(" '=;:(),") for piece in re.split(r"\.\.\.| / |\b[A-Z]+\b", quotes[0])]
    pieces = [piece for piece in pieces if len(piece) >= 10]
    assert pieces, f"{row}: expected more of the message than what differs"
    for piece in pieces:
        assert piece in texts(), piece
