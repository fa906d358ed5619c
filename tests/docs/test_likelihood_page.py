"""docs/likelihood.md: its commands run, its table has every likelihood with its forwards."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from stabledllm.config.likelihoods import MEANING
from tests.cli.runner import ROOT, in_process
from tests.fakes.tiny import model

PAGE = (ROOT / "docs" / "likelihood.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, tmp_path):
    """On a smaller model and two rows."""
    _, *words = shlex.split(command)
    model(layers=1).float().save_pretrained(tmp_path / "small")
    words = ["small" if word == "tiny" else "2" if before == "--rows" else word for before, word in
             zip(["", *words], words, strict=False)]  # fmt: skip
    result = in_process(*words, "--data", "synthetic:easy", "--length", "32", "--draws", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/eval.json"))
    kinds = words[words.index("--likelihood") + 1].split(",")
    for kind in kinds:
        assert record["metrics"][f"{kind}_nll"]["is"] == MEANING[kind]


def test_the_table_has_every_likelihood():
    kinds = PAGE.partition("## Which one")[0]
    rows = re.findall(r"(?m)^\| (?:\(`validation_nll`\), )?`(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", kinds)
    assert rows == ["elbo", "duel", "multisample", "tube", "stepmerge"]
    assert set(rows) == set(MEANING)
