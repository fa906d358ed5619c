"""Attention that widens from causal to full: DiffuLLaMA's rule, drawn from the run's own streams."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from stabledllm.errors import UserError
from stabledllm.models.families.annealing import Annealing, rate_at
from stabledllm.models.loading import load_model
from stabledllm.noise.streams import Key
from stabledllm.training.annealing import annealing_of
from tests.cli.runner import assert_refused, in_process
from tests.fakes.converted import write_a2d
from tests.models.families.cases import config_of, load, random_ids

TRAIN = [
    "train", "sft-synthetic", "model=hub", "method=standard", "batch=4", "steps=4", "save_every=1", "log_every=1",
    "data.train_rows=12", "data.validation_rows=4", "data.test_rows=null", "data.pad_response_to=8", "out=run",
]  # fmt: skip


def annealed(rate: float, step: int = 3) -> Annealing:
    return Annealing(Key(7, step), rate)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_a2d(tmp_path_factory.mktemp("a2d"), std=0.3)).double()


def test_a_token_sees_all_before_it_and_each_later_one_with_the_rate():
    positions = torch.arange(120)[None]
    for rate in (0.1, 0.6):
        allowed = annealed(rate).allowed(positions)[0]
        causal = torch.ones(120, 120).tril().bool()
        assert bool(allowed[causal].all())
        later = allowed[~causal].double()
        assert abs(float(later.mean()) - rate) < 5 * (rate * (1 - rate) / later.numel()) ** 0.5
    assert not torch.equal(annealed(0.6, step=4).allowed(positions), annealed(0.6).allowed(positions))


def test_the_draw_depends_on_positions_alone():
    """A shorter row, and a segment of a packed one, see what they would see in a long row."""
    whole = annealed(0.5).allowed(torch.arange(50)[None])[0]
    assert torch.equal(annealed(0.5).allowed(torch.arange(9)[None])[0], whole[:9, :9])
    packed = annealed(0.5).allowed(torch.cat((torch.arange(9), torch.arange(12)))[None])[0]
    assert torch.equal(packed[9:, 9:], whole[:12, :12])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_training_sees_through_the_draw_and_evaluation_sees_all(model, attention):
    ids = random_ids(2, 11)
    model.set_attn_implementation(attention)
    full = model.eval()(ids).logits
    with model.causal():
        causal = model(ids).logits
    found = {}
    for rate in (0.0, 0.5):
        model.annealing = annealed(rate)
        torch.testing.assert_close(model.eval()(ids).logits, full)
        found[rate] = model.train()(ids).logits
    torch.testing.assert_close(found[0.0], causal, rtol=1e-9, atol=1e-9)
    assert (found[0.5] - full).abs().max() > 0.1
    assert (found[0.5] - causal).abs().max() > 0.1
    # Padding and packing change nothing in what a row gives.
    real = torch.ones(2, 11).bool()
    real[1, 6:] = False
    padded = model(ids, real).logits
    torch.testing.assert_close(padded[0], found[0.5][0])
    alone = model(ids[1:, :6]).logits[0]  # eager attention takes its softmax in float32, in vectors of another length
    torch.testing.assert_close(padded[1, :6], alone, rtol=1e-3, atol=1e-5)
    both = torch.cat((ids[0], ids[1, :6]))[None]
    segment = torch.tensor([[1] * 11 + [2] * 6])
    position = torch.cat((torch.arange(11), torch.arange(6)))[None]
    together = model(both, segment_ids=segment, position_ids=position).logits[0]
    torch.testing.assert_close(together, torch.cat((padded[0], padded[1, :6])), rtol=1e-3, atol=1e-5)
    model.annealing = None
    model.set_attn_implementation("sdpa")


def run(*arguments: str, cwd):
    result = in_process(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def saved(tmp_path):
    return load_file(tmp_path / "run" / "model" / "model.safetensors")


@pytest.mark.long
@pytest.mark.slow
def test_a_resumed_run_repeats_it_bit_for_bit_and_the_next_run_goes_on(tmp_path):
    write_a2d(tmp_path / "hub", std=0.3, config={"anneal_steps": 6})
    run(*TRAIN, cwd=tmp_path)
    assert (config_of(tmp_path / "run/model")["anneal_steps"], config_of(tmp_path / "run/model")["annealed_steps"]) == (
        6,
        4,
    )
    whole = saved(tmp_path)
    (tmp_path / "run" / "run.json").unlink()
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
    shutil.rmtree(tmp_path / "run" / "model")
    assert "resuming from run/checkpoint-2" in run(*TRAIN, cwd=tmp_path)
    again = saved(tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert config_of(tmp_path / "run/model")["annealed_steps"] == 4
    # The next run makes the two steps that are left; then the model is like any other.
    run(*TRAIN, "model=run/model", "out=next", cwd=tmp_path)
    keys = config_of(tmp_path / "next/model")
    assert not {"anneal_steps", "annealed_steps"} & keys.keys()


@pytest.mark.slow
def test_annealing_changes_what_is_trained(tmp_path):
    weights = {}
    for steps in (None, 50):
        write_a2d(tmp_path / "hub", std=0.3, config={"anneal_steps": steps})
        run(*TRAIN, "steps=1", cwd=tmp_path)
        weights[steps] = saved(tmp_path)
        shutil.rmtree(tmp_path / "run")
    assert any(not torch.equal(weights[None][name], weights[50][name]) for name in weights[None])


def test_rates():
    assert [rate_at(step, 2) for step in range(3)] == [0.5, 1.0, 1.0]
    assert rate_at(0, 1) == 1.0, "one step is full attention at once"


def test_adapters_and_flash_attention_are_refused(tmp_path):
    write_a2d(tmp_path / "hub", config={"anneal_steps": 6})
    told = in_process(*TRAIN, "lora.rank=2", cwd=tmp_path)
    assert_refused(told, "key 'lora': expected a model whose attention is full", "over 6 steps")
    loaded = load_model(str(tmp_path / "hub")).model
    loaded.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"key 'attention': expected sdpa or eager .*, found 'flash_attention_2'"):
        annealing_of(loaded, 0)
    loaded.annealing = annealed(0.5)
    with pytest.raises(UserError, match=r"expected 'sdpa' or 'eager' for attention that is annealed"):
        loaded.train()(random_ids(1, 5))
