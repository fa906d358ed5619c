"""docs/averages.md: its commands run, in their order and on less, and its table is what the coefficients give."""

from __future__ import annotations

import re
import shlex

import pytest

from stabledllm.training.averages.fitting import fit
from stabledllm.training.averages.rules import Rule
from tests.cli.runner import ROOT, in_process

PAGE = (ROOT / "docs" / "averages.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALL = [
    "steps=16", "eval_every=null", "save_every=null", "batch=4", "data.train_rows=24", "data.validation_rows=3",
    "data.test_rows=1", "decoding.length=8", "decoding.steps=2", "decoding.block=8", "untuned=false", "eval_draws=1",
]  # fmt: skip
LESS = {
    "train": SMALL,
    "eval": ["--length", "8", "--steps", "2"],
    "experiment": [*(f"base.{each}" for each in SMALL), "methods=[standard]", "seeds=[1,2]"],
}


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    for command in COMMANDS:
        _, name, *words = shlex.split(command)
        ended = in_process(name, *words, *LESS.get(name, []), cwd=tmp_path)
        assert ended.returncode == 0, f"{command}\n{ended.stderr[-2000:]}"
    assert "averages of the weights" in ended.stdout, "an experiment prints the table of them"


def test_the_table_of_rebuilt_widths():
    head, _, *lines = re.search(r"(?ms)^\| snapshots \|.*?\n\n", PAGE)[0].strip().splitlines()
    widths = [float(cell) for cell in head.split("|")[2:-1]]
    for line in lines:
        first, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        stored = [(Rule("power", w), 960 * k // int(first)) for k in range(1, int(first) + 1) for w in (0.05, 0.1)]
        for width, cell in zip(widths, cells, strict=True):
            found = fit(stored, Rule("power", width), 960)
            percent, growth = (float(part.strip("()")) for part in cell.split())
            assert 100 * found.mismatch == pytest.approx(percent, rel=0.06)
            assert found.growth == pytest.approx(growth, abs=0.06)
