"""A run whose numbers are no longer finite ends at that step, keeps what is finite, and says so ever after."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stabledllm.errors import Diverged, NotFinite
from stabledllm.runtime.finite import require_finite
from stabledllm.training import finishing
from stabledllm.training import run as training_run
from stabledllm.training.diverged import StepWatch, all_finite
from tests.cli.runner import in_process
from tests.fakes.trainer import make_trainer

SMALL = (
    "data.train_rows=24", "data.validation_rows=4", "data.test_rows=2", "decoding.length=8", "decoding.steps=4",
    "decoding.block=4", "batch=4", "steps=6", "log_every=1", "eval_every=null", "save_every=1",
)  # fmt: skip
WILD = (*SMALL, "trainer.learning_rate=1e30", "trainer.max_grad_norm=0", "out=run")


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


class At(TrainerCallback):
    """Does something once, between the optimizer's step and its end."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def on_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.do()


def poisoned(tmp_path, where: str, step: int = 3, value: float = math.nan, **arguments):
    """A trainer in which one thing is not finite at one step and everything before is."""
    trainer = make_trainer(tmp_path, steps=6, save_strategy="steps", save_steps=1, **arguments)
    model, first = trainer.model, next(iter(trainer.model.parameters()))

    def now() -> bool:
        return trainer.state.global_step + 1 == step and model.training

    if where == "loss":
        model.register_forward_hook(lambda m, i, out: setattr(out, "nll", out.nll * value) if now() else None)
    elif where == "gradient":
        first.register_hook(lambda grad: grad * value if now() else grad)
    elif where == "weights":
        trainer.add_callback(At(step, lambda: first.data.view(-1)[5:6].fill_(value)))
    elif where == "optimizer":
        trainer.add_callback(At(step, lambda: trainer.optimizer.state[first]["exp_avg_sq"].view(-1)[5:6].fill_(value)))
    return trainer


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("loss", "the loss was not finite"),
        ("gradient", "the gradient norm was not finite"),
        ("weights", "the weights were not finite after the step"),
        ("optimizer", "the optimizer's state was not finite after the step"),
    ],
)
def test_the_first_step_that_is_not_finite_ends_the_run(tmp_path, where, what, value, clip):
    trainer = poisoned(tmp_path, where, value=value, max_grad_norm=clip)
    with pytest.raises(Diverged) as ended:
        trainer.train()
    assert (ended.value.step, ended.value.what) == (3, what)
    assert str(ended.value) == f"diverged at step 3: {what}"
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all(math.isfinite(h["loss"]) and h["loss"] > 0 for h in trainer.state.log_history), "no loss of 0.0"
    if where in ("loss", "gradient"):
        kept = load_like(trainer, tmp_path / "checkpoint-2")
        assert torch.equal(weights(trainer.model), kept), "the optimizer never made that step"


def load_like(trainer, folder) -> torch.Tensor:
    stored = load_file(folder / "model.safetensors")
    return torch.cat([stored[name].flatten() for name, _ in trainer.model.named_parameters()])


def test_a_loss_of_one_micro_batch_of_many_ends_it_too(tmp_path):
    trainer, calls = make_trainer(tmp_path, micro=4, accumulation=2, steps=3), []

    def spoil(model, inputs, out):
        calls.append(1)
        if len(calls) == 3:
            out.nll = out.nll * math.nan

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(Diverged, match="step 2: the loss"):
        trainer.train()


def test_an_evaluation_loss_that_is_not_finite_ends_it(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, eval_strategy="steps", eval_steps=2)
    trainer.model.register_forward_hook(
        lambda m, i, out: None if m.training else setattr(out, "nll", out.nll * math.inf)
    )
    with pytest.raises(Diverged, match="step 2: the evaluation loss was not finite"):
        trainer.train()


def test_ranks_come_to_one_answer():
    """What one rank alone found is raised on all: here rank 0, whose own numbers are finite."""
    other = torch.tensor([[0.0, 1.0]])
    accelerator = SimpleNamespace(gather=lambda mine: torch.cat((mine, other)), scaler=None)
    trainer = SimpleNamespace(
        accelerator=accelerator, args=SimpleNamespace(device="cpu"), state=SimpleNamespace(global_step=6)
    )
    watch = StepWatch(trainer)
    watch.loss(torch.ones(2), torch.tensor(1.0))
    watch.gradient(1.0)
    with pytest.raises(Diverged, match="step 7: the gradient norm"):
        watch.before_step()
    scaled = SimpleNamespace(gather=lambda mine: mine, scaler=object())
    watch = StepWatch(SimpleNamespace(accelerator=scaled, args=trainer.args, state=trainer.state))
    watch.gradient(math.inf)
    watch.before_step()  # float16's loss scale skips such a step itself


def test_the_command_says_so_keeps_what_is_finite_and_does_not_repeat_it(tmp_path):
    first = in_process("train", "sft-synthetic", *WILD, cwd=tmp_path)
    assert first.returncode == 3
    said = first.stderr.strip().splitlines()[-1]
    assert said.startswith("stabledllm: run: diverged at step 2: ")
    assert "its last finite checkpoint is checkpoint-1, and model/ holds the last finite weights" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["metrics"], record["steps"]) == ("diverged", {}, 1)
    assert record["diverged"]["step"] == 2
    assert record["diverged"]["checkpoint"] == "checkpoint-1"
    assert [h["step"] for h in record["history"]] == [1]
    assert record["history"][0]["loss"] > 0
    assert all_finite(load_file(tmp_path / "run" / "model" / "model.safetensors").values())
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    again = in_process("train", "sft-synthetic", *WILD, cwd=tmp_path)
    assert again.returncode == 3
    assert again.stderr.strip().splitlines()[-1] == said
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before


def test_a_model_that_is_not_finite_is_not_kept_and_is_said(tmp_path, monkeypatch):
    """Weights of NaN before the first step: no checkpoint, no model."""

    def spoiled(settings):
        loaded = build(settings)
        next(iter(loaded.model.parameters())).data.fill_(math.nan)
        return loaded

    build = training_run.build_model
    monkeypatch.setattr(training_run, "build_model", spoiled)
    result = in_process("train", "sft-synthetic", *SMALL, "out=run", cwd=tmp_path)
    assert result.returncode == 3
    assert "diverged at step 1: the loss was not finite; it had no checkpoint yet. To start" in result.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_what_is_decoded_of_a_trained_model_must_be_finite_too(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise NotFinite("decoding: expected finite numbers, found nan (3 of 3).")

    monkeypatch.setattr(finishing, "score_generated", fails)
    result = in_process("train", "sft-synthetic", *SMALL, "out=run", cwd=tmp_path)
    assert result.returncode == 3
    assert "diverged at step 6: what the trained model decodes is not finite (decoding: " in result.stderr
    assert not (tmp_path / "run" / "trained.json").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["diverged"]["model"] == "model"


def test_finite_means_every_value():
    assert all_finite([torch.zeros(0), torch.tensor([1e38, 1.0]), torch.tensor([3])])
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite([torch.ones(4), torch.tensor([1.0, bad], dtype=torch.bfloat16)])
    with pytest.raises(NotFinite, match=r"these: expected finite numbers, found nan \(2 of 3\)"):
        require_finite(torch.tensor([1.0, math.nan, math.inf]), "these")
