"""The commands of docs/convert.md run, on a small model of that name, and its table has every option."""

from __future__ import annotations

import inspect
import re
import shlex

import pytest

from stabledllm.cli.convert import convert
from tests.cli.runner import ROOT, in_process
from tests.fakes.hub_models import write_qwen2

PAGE = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]
SMALL = {
    "convert": [],
    "decompose": [
        "rows=4", "rates=2", "masks=2", "steps=4", "forwards=4", "probe.rows=4", "probe.rates=4", "probe.masks=2",
        "probe.starts=3", "data.train_rows=8",
    ],
    "train": [
        "steps=3", "eval_every=3", "save_every=3", "batch=2", "data.train_rows=8", "data.validation_rows=2",
        "data.test_rows=1", "decoding.length=8", "decoding.steps=4", "decoding.block=8",
    ],
    "generate": ["--length", "8", "--steps", "4"],
}  # fmt: skip


def test_every_option_has_a_row():
    named = set(inspect.signature(convert).parameters) - {"model", "out", "allow_pickle"}
    rows = "".join(re.findall(r"(?m)^\| `--(.*?)` ", PAGE))
    assert all(name.replace("_", "-") in rows for name in named)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small random model where the page's commands look for one."""
    folder = tmp_path_factory.mktemp("convert")
    write_qwen2(folder / "Qwen" / "Qwen2.5-0.5B", config={"torch_dtype": "float32"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(folder, command):
    words = shlex.split(command)[1:]
    result = in_process(*words, *SMALL[words[0]], cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    if words[0] == "convert":
        assert "at most 0 from the original's" in result.stdout
