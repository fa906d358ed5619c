"""docs/use_in_your_loop.md: every block runs on the tiny model, and what the page says of the means holds."""

from __future__ import annotations

import os
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.schedule import p_mask
from tests.checks.statistics import Z, assert_mean
from tests.cli.runner import ROOT, in_process
from tests.fakes import plugs
from tests.fakes.dllm import MDLMTrainer
from tests.fakes.tiny import model as small

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "use_in_your_loop.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MASK = 256
SMALL_PROBE = ["ppots.rows=8", "ppots.rates=6", "ppots.masks=2", "ppots.starts=3", "data.train_rows=32"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's names after all of its blocks have run, in a folder where its command has."""
    folder = tmp_path_factory.mktemp("page")
    for block in SHELL:
        for line in block.splitlines():
            result = in_process(*shlex.split(line)[1:], *SMALL_PROBE, cwd=folder)
            assert result.returncode == 0, result.stderr[-2000:]
    trained = load_model("tiny").model
    args = SimpleNamespace(
        time_epsilon=1e-3, loss_weight_type="scheduler", loss_norm_type="sequence", right_shift_logits=False, seed=1,
        block_size=4, world_size=1,
    )  # fmt: skip
    names = {
        "mask_id": MASK, "model": trained, "args": args, "MDLMTrainer": MDLMTrainer, "collator": dict,
        "BD3LMTrainer": plugs.BD3LMTrainer, "SFTTrainer": plugs.Loop,
    }  # fmt: skip
    strategy = SimpleNamespace(DLLM_STRATEGIES={}, MDLMStrategy=plugs.MDLMStrategy)
    here = os.getcwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("", ".recipes", ".recipes.dllm"):
                patch.setitem(sys.modules, f"nemo_automodel{name}", SimpleNamespace())
            patch.setitem(sys.modules, "nemo_automodel.recipes.dllm.strategy", strategy)
            for block in PYTHON:
                exec(block, names)
    finally:
        os.chdir(here)
    return names


SIZE = 9


def one_row(copies: int):
    """Copies of a row of the task, cut after the first 9 tokens of its response, which may be masked."""
    example = load_examples("synthetic:hard", split="train", n=1, seed=1)
    row = encode_examples(example, ByteTokenizer(), EncodingOptions()).rows[0]
    length = row.prompt_length + SIZE
    ids = torch.tensor(row.input_ids[:length]).expand(copies, length)
    return ids, (torch.arange(length) >= row.prompt_length).expand(copies, length)


def objective(model, eps: float = 1e-3) -> float:
    """The row's exact bound: every subset of the maskable tokens, the ratio integrated by a fine midpoint rule."""
    ids, maskable = one_row(2**SIZE)
    mask = torch.zeros_like(maskable)
    mask[:, -SIZE:] = (torch.arange(2**SIZE)[:, None] >> torch.arange(SIZE)) & 1 == 1
    with torch.no_grad():
        logits = model(torch.where(mask, MASK, ids)).logits
    nll = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").double()
    held = mask.sum(1)
    by_count = torch.zeros(SIZE + 1, dtype=torch.float64).index_add_(0, held, (nll * mask).sum(1))
    k = torch.arange(1, SIZE + 1)
    p = p_mask((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000, eps)[:, None]
    return float((p ** (k - 1) * (1 - p) ** (SIZE - k)).mean(0) @ by_count[1:] / SIZE)


@torch.no_grad()
def means(draw, n: int = 40) -> torch.Tensor:
    return torch.stack([draw(step).double() for step in range(n)])


@pytest.mark.statistical
def test_before_and_after_have_the_mean_of_the_bound(page):
    model, (ids, maskable) = page["model"], one_row(32)
    exact = objective(model)
    torch.manual_seed(0)
    before = means(lambda step: page["loss_before"](model, ids, maskable, MASK))
    after = means(lambda step: page["loss_after"](model, ids, maskable, step))
    for found in (before, after):
        assert_mean(found, exact)


@pytest.mark.statistical
def test_the_dllm_block_has_the_same_mean(page):
    model, (ids, maskable) = page["model"], one_row(32)
    torch.manual_seed(1)
    assert_mean(means(lambda step: page["trainer"].row_losses(ids, maskable).mean()), objective(model))
    assert isinstance(page["scheduler"].sampler, Tabulated)


@pytest.mark.statistical
def test_open_dllm_before_is_another_objective_and_after_is_the_bound(page):
    model = page["model"]
    ids, _ = one_row(32)
    response = list(ids)
    torch.manual_seed(2)
    before = means(lambda step: page["mean_before"](model, *page["collate_before"](response, MASK)), 30)
    collated = page["collate_after"](response)
    after = means(lambda step: page["bound_after"](model, *collated, step), 30)
    assert abs(before.mean() - after.mean()) > Z * (before.var() / 30 + after.var() / 30).sqrt()
    assert page["unweighted"].objective.power == 1
    # What is left of the noise is which tokens are masked.
    assert after.var() < 0.7 * means(lambda step: page["loss_before"](model, *collated, MASK), 30).var()


def test_micro_batches_and_ranks_add_up_to_one_step(page):
    model, (ids, maskable) = small(), one_row(8)
    model.zero_grad()
    page["loss_after"](model, ids, maskable, 5).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = [(ids[:2], maskable[:2])] * 2
    for rank in (0, 1):  # each rank's gradient is twice its part; their average is the step's
        page["backward_of_a_step"](model, parts, 5, rank=rank, ranks=2)
    for p, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad / 2, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.statistical
def test_the_collators_block_and_dreams_have_the_mean_of_the_bound(page):
    model, (ids, maskable) = page["model"], one_row(8)
    rows = {"input_ids": ids, "completion_mask": maskable}
    assert_mean(means(lambda _: page["collated_loss"](model, rows), 60), objective(model))
    # Logits moved one place ahead predict the next token, as Dream's do.
    ahead = lambda noisy: SimpleNamespace(logits=model(noisy).logits.roll(-1, 1))  # noqa: E731
    assert_mean(means(lambda step: page["dream_step"](ahead, [(ids, maskable)], step), 60), objective(model))


def test_the_blocks_for_trainers_are_the_plug_points(page):
    assert page["DLLM_STRATEGIES"] == {"less_noise": page["LessNoise"]}
    assert page["less_noise"].noise.method.name == "lowdisc+fixedcount"
    assert page["masked"].noise.method.name == "lowdisc+mirror"


def test_shifted_logits(page):
    logits = torch.arange(6.0).view(1, 3, 2)
    assert page["shifted"](logits).tolist() == [[[0, 1], [0, 1], [2, 3]]]


def test_every_block_of_the_page_is_run():
    assert len(PYTHON) == PAGE.count("```python") == 13
    assert PAGE.count("```") == 2 * (len(PYTHON) + len(SHELL))
