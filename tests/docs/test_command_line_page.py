"""The page on the command line shows what a terminal of 80 columns shows."""

from __future__ import annotations

import re
import shlex

import pytest

from stabledllm.cli.printing import fitting
from tests.cli.runner import ROOT
from tests.cli.runner import in_process as call
from tests.docs.test_first_hour_page import Terminal

PAGE = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
SCREENS = re.findall(r"(?ms)^\$ stabledllm (.*?)\n(.*?)(?=^\$ |^```)", PAGE)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_page_has_screens():
    assert len(SCREENS) >= 4


@pytest.mark.parametrize(("command", "screen"), SCREENS, ids=lambda text: text[:40].split("\n")[0])
def test_screens(tmp_path, monkeypatch, command, screen):
    monkeypatch.setenv("COLUMNS", "80")
    result = call(*shlex.split(command), cwd=tmp_path)
    assert fitting(result.stdout + result.stderr, Terminal()) == screen


@pytest.mark.parametrize("line", SHELL)
def test_both_spellings_are_one(tmp_path, line):
    words = shlex.split(line)[1:]
    assert (
        call(*words, "--dry-run", cwd=tmp_path).stdout
        == call(*shlex.split(SHELL[0])[1:], "--dry-run", cwd=tmp_path).stdout
    )
