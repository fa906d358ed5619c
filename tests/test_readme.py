"""Every command of the README runs (the quickstart by its documented reduced option); its loop trains."""

from __future__ import annotations

import json
import math
import re
import shlex
import time

import pytest
import torch

from stabledllm.cli import decompose
from tests.cli.runner import ROOT, in_process
from tests.fakes.tiny import model, rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in SHELL if line.startswith("stabledllm ")]
LONG = ("quickstart-images", "quickstart-rl", "recommend", "decompose --gradient")
"""Commands that need nothing of those before them, and that no other needs: they take many seconds."""
# The same commands on less: every setting named here is one that a user can give.
SMALL_PROBE = ["ppots.rows=4", "ppots.rates=6", "ppots.masks=2", "ppots.starts=3"]
SMALL_TRAIN = [
    "steps=2", "eval_every=1", "save_every=1", "batch=4", "data.train_rows=24", "data.validation_rows=4",
    "data.test_rows=2",
]  # fmt: skip
SMALL_LAB = [
    "rows=4", "rates=2", "masks=2", "steps=4", "forwards=4", "probe.rows=4", "probe.rates=4", "probe.masks=2",
    "probe.starts=3", "data.train_rows=8", "grad.rows=4", "grad.view_rows=4", "grad.rates=2", "grad.steps=4",
]  # fmt: skip
FEW_METHODS = ["--methods", "ppots,lowdisc+fixedcount"]
REDUCED = {
    "decompose": [*SMALL_LAB, *FEW_METHODS],
    "recommend": [*SMALL_LAB, *FEW_METHODS],
    "fit": SMALL_PROBE,
    "train": [*SMALL_TRAIN, *SMALL_PROBE],
    "eval": ["--rows", "4"],
    "replay": ["--step", "2"],
    "quickstart-images": [],
    "quickstart-rl": [],
    "experiment": [f"base.{setting}" for setting in [*SMALL_TRAIN, *SMALL_PROBE]],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to run the commands in, in order, with a small GSM8K of its own at the README's PATH."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "PATH").mkdir()
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            {"question": f"Add {i} and 2.", "answer": f"<<{i}+2={i + 2}>>\n#### {i + 2}"}
            for i in range(first, first + 24)
        ]
        (folder / "PATH" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    own = [{"prompt": f"{i}+1=?", "completion": f"#### {i + 1}"} for i in range(24)]
    (folder / "PATH" / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in own))
    pairs = [row | {"chosen": row.pop("completion"), "rejected": "#### 0"} for row in own]
    (folder / "PATH" / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    return folder


def test_every_shell_line_is_known():
    assert SHELL[:2] == [line for line in SHELL if line.startswith("make ")]
    assert len(COMMANDS) == len(SHELL) - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.long) if c.partition(" ")[2].startswith(LONG) else c for c in COMMANDS],
)
def test_command(folder, command):
    words = shlex.split(command)[1:]
    fewer = REDUCED.get(words[0], [])
    if words[0] == "decompose" and "--gradient" not in words:
        fewer = [setting for setting in fewer if not setting.startswith("grad.")]
    if words[1:2] == ["sft-scenes"]:
        fewer = [*fewer, "image_decoding.steps=2"]
    result = in_process(*words, *fewer, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.processes
def test_quickstart_at_reduced_size(tmp_path, monkeypatch):
    """With a process beside it, as at full size, that fits and makes some of the runs."""
    runs, measure = tmp_path / "q" / "experiment" / "runs", decompose.run

    def measure_until_a_run_is_made(*arguments) -> None:
        measure(*arguments)
        while not any(runs.glob("*/*/run.json")):
            time.sleep(0.05)

    monkeypatch.setattr(decompose, "run", measure_until_a_run_is_made)
    monkeypatch.setattr("stabledllm.cli.quickstart_jobs._spare", lambda *_: 1)
    monkeypatch.setattr("stabledllm.cli.beside.START", "fork")  # it need not load torch again
    assert "`make quickstart QUICKSTART=--small`" in README
    result = in_process("quickstart", "--small", "--out", "q", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "q" / "report.html").stat().st_size > 100_000
    results = json.loads((tmp_path / "q" / "experiment" / "results.json").read_text())
    assert results["status"] == {"finished": 8, "planned": 8}
    assert len({run["forward_passes"] for run in results["runs"]}) == 1, "equal compute"
    made_here = result.stdout.count("run.json and the model in")
    assert made_here < 8, "the process beside it made some"
    again = in_process("quickstart", "--small", "--out", "q", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "q" / "experiment" / "results.json").read_text())["runs"] == results["runs"]


def test_the_loop_trains():
    namespace: dict = {}
    exec(PYTHON[0], namespace)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(12, 16), torch.nn.Linear(16, 11))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ids = torch.randint(0, 3, (8, 10))
    losses = []
    for step in range(60):
        loss = namespace["loss_of"](model, ids, torch.ones_like(ids, dtype=torch.bool), step, 11)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert sum(losses[-10:]) / 10 < math.log(3) + 0.1, "three equally likely tokens: log 3 is the floor"


def test_the_log_ratio_is_differentiable_and_zero_between_equal_models():
    namespace: dict = {}
    for block in PYTHON:
        exec(block, namespace)
    policy, reference, data = model(), model(), rows(3)
    ratio = namespace["log_ratio"](policy, reference, data, step=4)
    assert ratio.abs().max() < 1e-9, "the same masks for both"
    ratio.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
    assert all(p.grad is None for p in reference.parameters())
