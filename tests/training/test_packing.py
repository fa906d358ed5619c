"""Packed rows, rows grouped by length, and views one by one give the trajectory of the plain run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stabledllm.forward.nll import forward_nll
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key
from tests.checks.trajectory import assert_same_trajectory
from tests.cli.runner import assert_refused, in_process
from tests.fakes.tiny import rows
from tests.fakes.trainer import make_trainer
from tests.training.test_invariance import run

PACKED, GROUPED, ALONE = {"packing": True}, {"group_by_length": True}, {"views_per_forward": 1}


def varied() -> list:
    """Rows of clearly different length: the synthetic ones, each cut to a response of its own length."""
    return [
        replace(row, input_ids=row.input_ids[: row.prompt_length + 2 + 3 * i % (row.response_length - 1)], delimiter=[])
        for i, row in enumerate(rows(22))
    ]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("standard", PACKED),
        ("standard", GROUPED),
        ("mirror", ALONE),
        ("strats+ppots+mirror", PACKED | GROUPED | ALONE),
        ("lowdisc+fixedcount+partition3", PACKED | {"views_per_forward": 2}),
        ("lowdisc+complement", PACKED | GROUPED | ALONE),
        ("syrm+mirror", PACKED | ALONE),
    ],
)
def test_the_trajectory_is_that_of_the_plain_run(tmp_path, method, options):
    train = varied()
    plain = run(tmp_path, "plain", method, 4, 2, train=train)
    other = run(tmp_path, "other", method, 4, 2, train=train, **options)
    assert other.recorded.draws == plain.recorded.draws
    assert_same_trajectory(other.recorded.losses, plain.recorded.losses)
    assert other.statistics.forward_passes == plain.statistics.forward_passes
    for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_grouping_deals_a_steps_own_rows_by_length(tmp_path):
    train = varied()
    trainer = make_trainer(tmp_path, micro=4, accumulation=2, train=train, **GROUPED)
    plain = make_trainer(tmp_path, micro=4, accumulation=2, train=train)
    order, before = list(trainer._get_train_sampler()), list(plain._get_train_sampler())
    for start in range(0, len(train), 8):
        step = order[start : start + 8]
        assert sorted(step) == sorted(before[start : start + 8]), "the same rows, each in its place"
        lengths = [len(train[row]) for row, _ in step]
        assert lengths == sorted(lengths, reverse=True)
    assert order != before


def test_another_segment_changes_nothing():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = TinyMDM(TinyMDMConfig(**shape)).double().eval()
    one, two = torch.randint(0, 250, (1, 7)), torch.randint(0, 250, (1, 5))
    segment, position = torch.tensor([[0] * 7 + [1] * 5]), torch.cat((torch.arange(7), torch.arange(5)))[None]
    packed = model(torch.cat((one, two), 1), segment_ids=segment, position_ids=position).logits
    torch.testing.assert_close(packed[:, :7], model(one).logits)
    torch.testing.assert_close(packed[:, 7:], model(two).logits)
    other = model(torch.cat((one, (two + 1) % 250), 1), segment_ids=segment, position_ids=position).logits
    assert torch.equal(other[:, :7], packed[:, :7])
    assert not torch.equal(other[:, 7:], packed[:, 7:])


def test_packed_forwards_are_shorter_and_equal():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model, seen = TinyMDM(TinyMDMConfig(**shape)).double(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    lengths = torch.tensor([20, 3, 9, 5, 11])
    attention = torch.arange(20)[None] < lengths[:, None]
    ids = torch.randint(0, 250, attention.shape)
    drawn = Rows(torch.arange(5), 5, attention & (torch.arange(20) > 0), torch.arange(20))
    draw = Method.parse("mirror").draw(Key(1, 0), drawn, Uniform())
    batch = {"input_ids": ids, "attention_mask": attention}
    plain, n = forward_nll(model, batch, draw, 256)
    packed, m = forward_nll(model, batch, draw, 256, packing=True)
    torch.testing.assert_close(packed, plain)
    assert n == m == 10
    assert seen[1].numel() < 0.6 * seen[0].numel()


def test_views_one_by_one_hold_less(tmp_path):
    """The activations of one view at a time: measured as the most bytes that backward has to keep."""

    def kept(**options) -> int:
        trainer, alive, peak = make_trainer(tmp_path / str(options), "partition4", steps=1, **options), [0], [0]

        def pack(x):
            alive[0] += x.numel()
            peak[0] = max(peak[0], alive[0])
            return x

        true = trainer.accelerator.backward

        def backward(loss):
            true(loss)
            alive[0] = 0

        trainer.accelerator.backward = backward
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            trainer.train()
        return peak[0]

    assert kept(views_per_forward=1) < 0.4 * kept()


def test_auto_says_how_many_views_it_takes(tmp_path):
    small = ["steps=1", "batch=4", "data.train_rows=8", "data.validation_rows=4", "data.test_rows=1"]
    small += ["save_every=null", "eval_every=null", "decoding.length=8", "decoding.steps=1"]
    train = ["train", "sft-synthetic", *small, "method=mirror", "views_per_forward=auto", "out=run"]
    result = in_process(*train, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "views of a row in one forward: all" in result.stdout
    assert_refused(in_process(*train[:-2], "views_per_forward=some", cwd=tmp_path), "views_per_forward")
