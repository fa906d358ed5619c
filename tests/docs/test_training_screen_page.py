"""docs/training_screen.md shows what its command prints, and the keys that history.jsonl has."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.cli.runner import ROOT, in_process

PAGE = ROOT / "docs" / "training_screen.md"


def fenced(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def without_figures(text: str) -> list[str]:
    """The lines, with numbers that differ from machine to machine and from run to run left out."""
    lines = (line for line in text.splitlines() if not line.startswith("device "))
    return [
        re.sub(r"[-+]?\d[\d,.]*(e-?\d+)?", "0", line) if _is_figures(line) else line for line in map(_narrow, lines)
    ]


def _is_figures(line: str) -> bool:
    return bool(re.match(r"( ?\d+ )|validation NLL|untuned model|difference|accuracy", line))


def _narrow(line: str) -> str:
    return re.sub(r" +", " ", line)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    done = in_process(*shlex.split(fenced("sh"))[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "shown", done.stdout


def test_the_page_shows_what_is_printed(run):
    _, printed = run
    assert without_figures(printed.strip()) == without_figures(fenced("text").strip())


def test_the_keys_of_the_history_are_those_of_the_page(run):
    folder, _ = run
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    shown = [json.loads(line) for line in fenced("json").splitlines()]
    assert {tuple(line) for line in lines} == {tuple(line) for line in shown}
