"""docs/your_own_model.md: every block runs on stand-ins of its stack, with less variance at the same mean."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest
import torch

from stabledllm.lab.own.lab import Lab
from tests.checks.statistics import Z
from tests.cli.runner import ROOT
from tests.fakes import stacks

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "your_own_model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FIRST, SPREAD, DLLM, LLADA, NEMO, PLAIN = BLOCKS
LENGTH, PROMPT, BATCH = 16, 4, 96
"""A large batch, since under uniform t a few draws at small t make much of a variance."""
IDS = torch.randint(stacks.PAD, (24, LENGTH), generator=torch.Generator().manual_seed(0)).repeat(4, 1)
MASKABLE = (torch.arange(LENGTH) >= PROMPT).expand(BATCH, -1)


@pytest.fixture(autouse=True)
def fewer_forwards(monkeypatch):
    """The same page on fewer rows: every option that is changed here is one that a user can give."""
    fit, decompose = Lab.fit, Lab.decompose
    small = {"rows": 8, "rates": 4, "steps": 8, "probe": {"rows": 8, "rates": 4, "masks": 2, "starts": 3}}
    monkeypatch.setattr(Lab, "fit", lambda self, method="ppots": fit(self, method, rows=24, starts=3))
    monkeypatch.setattr(Lab, "decompose", lambda self, **given: decompose(self, **small | given))
    recommend = Lab.recommend
    monkeypatch.setattr(Lab, "recommend", lambda self, **given: recommend(self, **small | given))


def run(*blocks: str, cwd, **names) -> dict:
    names = {"mask_id": stacks.MASK, "pad_id": stacks.PAD, "torch": torch} | names
    torch.manual_seed(0)
    here = os.getcwd()
    os.chdir(cwd)
    try:
        for block in blocks:
            exec(block, names)
    finally:
        os.chdir(here)
    return names


def assert_less_noise(names: dict, at_most: float) -> None:
    before, after = names["before"], names["after"]
    error = (before.var() / len(before) + after.var() / len(after)) ** 0.5
    assert abs(before.mean() - after.mean()) < Z * error
    assert after.var() < at_most * before.var()


ROWS = [(ids, PROMPT) for ids in IDS]


def test_the_first_block(tmp_path, capsys):
    run(FIRST, cwd=tmp_path, model=stacks.HFModel().eval(), rows=ROWS)
    assert "Noise of each method" in capsys.readouterr().out


@pytest.mark.statistical
def test_dllm(tmp_path):
    labels = torch.where(torch.arange(LENGTH) >= PROMPT, IDS, -100)
    data = [{"input_ids": ids.tolist(), "labels": one.tolist()} for ids, one in zip(IDS, labels, strict=True)]
    names = run(
        SPREAD, DLLM, cwd=tmp_path, model=stacks.HFModel().eval(), MDLMTrainer=stacks.MDLMTrainer, train_dataset=data,
        tokenizer=SimpleNamespace(mask_token_id=stacks.MASK, pad_token_id=stacks.PAD),
        args=SimpleNamespace(time_epsilon=stacks.EPS), batch={"input_ids": IDS[:BATCH], "labels": labels[:BATCH]},
    )  # fmt: skip
    assert_less_noise(names, 0.8)
    assert (tmp_path / "fit/p_of_t.json").exists()


@pytest.mark.statistical
def test_llada(tmp_path):
    model = stacks.LLaDAModelLM().eval()
    names = run(SPREAD, LLADA, cwd=tmp_path, model=model, rows=ROWS, input_ids=IDS[:BATCH], maskable=MASKABLE)
    assert_less_noise(names, 0.3)


@pytest.mark.statistical
def test_nemo(tmp_path):
    names = run(
        SPREAD, NEMO, cwd=tmp_path, model=stacks.HFModel().eval(), rows=ROWS, input_ids=IDS[:32],
        loss_mask=MASKABLE[:32].long(), MDLMStrategy=stacks.MDLMStrategy, Recipe=stacks.Recipe,
    )  # fmt: skip
    assert_less_noise(names, 0.8)


@pytest.mark.statistical
def test_a_plain_loop(tmp_path, capsys):
    gpt = stacks.GPT()
    names = run(SPREAD, PLAIN, cwd=tmp_path, gpt=gpt, tokens=IDS, x=IDS[:BATCH])
    assert_less_noise(names, 0.3)
    assert "Where the variance of one row comes from" in capsys.readouterr().out
    assert all(p.grad is not None for p in gpt.parameters())


def test_the_blocks_are_short():
    for block in (DLLM, LLADA, NEMO, PLAIN):
        assert len([line for line in block.splitlines() if line.strip()]) <= 20
