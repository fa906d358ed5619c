"""docs/objectives.md: its table is that of the names, and its commands are read."""

from __future__ import annotations

import re
import shlex

import pytest

from stabledllm.config.objectives import NAMED, in_keys
from tests.cli.runner import ROOT, in_process

PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
BLOCKS = (ROOT / "docs" / "blocks.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE + BLOCKS, re.DOTALL)
    for line in block.splitlines()
    if "objective" in line or "schedule" in line
]


def test_every_name_has_its_row():
    rows = {row[0]: row for row in re.findall(r"(?m)^\| `([\w-]+)` \| `([^`]+)`[^|]*\|[^|]*\|(.*)\|$", PAGE)}
    assert list(rows) == sorted(rows, key=list(rows).index)
    assert set(rows) == set(NAMED)
    for name, one in NAMED.items():
        assert rows[name][1] == in_keys(one.keys)
        assert not one.noise or f"`{one.noise}`" in rows[name][2]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_is_read(command, tmp_path):
    _, name, *words = shlex.split(command)
    assert name in ("train", "decompose", "recommend")
    read = ["validate", *words] if name == "train" else [name, *words, "--dry-run"]
    result = in_process(*read, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
