"""The autoregressive baseline in the same trainer, and through every command that takes a model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from stabledllm.models.loading import load_model
from tests.cli.runner import assert_refused, in_process
from tests.fakes.hub_models import write_llama, write_qwen2
from tests.fakes.tiny import rows
from tests.fakes.trainer import make_trainer

SMALL = [
    "method=autoregressive", "batch=4", "steps=2", "save_every=1", "log_every=1", "data.train_rows=12",
    "data.validation_rows=4", "data.test_rows=3", "data.pad_response_to=8", "decoding.length=8", "decoding.steps=8",
    "decoding.block=8", "trainer.gradient_checkpointing=true",
]  # fmt: skip


def run(*arguments: str, cwd):
    result = in_process(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def trained(folder, out, **change):
    model = load_model(str(folder), torch.float64).model
    trainer = make_trainer(out, "autoregressive", model=model, steps=6, **change)
    trainer.train()
    return trainer.recorded.losses, {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_split_over_devices_and_packing_change_nothing(tmp_path):
    folder = write_qwen2(tmp_path / "q", std=0.2)
    losses, weights = trained(folder, tmp_path / "whole", micro=8)
    for name, change in {
        "accumulated": {"micro": 2, "accumulation": 4},
        "packed": {"micro": 8, "packing": True},
        "grouped": {"micro": 4, "accumulation": 2, "group_by_length": True},
    }.items():
        other, found = trained(folder, tmp_path / name, **change)
        assert other == pytest.approx(losses, abs=1e-9), name
        for key, value in weights.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}")


def test_a_steps_loss_is_the_mean_of_transformers_own_over_its_rows(tmp_path):
    folder = write_qwen2(tmp_path / "q", std=0.2)
    model = load_model(str(folder), torch.float64).model
    data = rows(8)  # one step is the whole data, so that its order does not matter
    trainer = make_trainer(tmp_path / "run", "autoregressive", model=model, steps=1, train=data)
    before = []
    for row in data:
        ids = torch.tensor([row.input_ids])
        labels = ids.clone()
        labels[:, : row.prompt_length] = -100
        with torch.no_grad():
            before.append(model(ids, labels=labels).loss.item())
    trainer.train()
    assert trainer.recorded.losses == [pytest.approx(sum(before) / len(before), abs=2e-6)]


@pytest.mark.parametrize("write", [write_qwen2, write_llama])
@pytest.mark.parametrize("lora", [False, True])
def test_train_resume_generate_evaluate(tmp_path, write, lora):
    write(tmp_path / "hub", shards=2)
    train = ["train", "sft-synthetic", *SMALL, "model=hub", "out=run"] + (["lora.rank=2"] if lora else [])
    run(*train, cwd=tmp_path)
    model = tmp_path / "run" / "model"
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    after = load_file(model / file)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["forward_passes"] == 8
    assert record["metrics"]["accuracy"]["n"] == 3
    assert record["metrics"]["accuracy"]["decoding"]["steps"] == 8
    # As if killed after the first step: the second is the same again.
    (tmp_path / "run" / "run.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    shutil.rmtree(model)
    assert "resuming from run/checkpoint-1" in run(*train, cwd=tmp_path)
    again = load_file(model / file)
    assert all(torch.equal(after[key], again[key]) for key in after)
    assert run("generate", "1+1", "--model", "run/model", "--length", "8", "--steps", "8", cwd=tmp_path).startswith(
        "1+1"
    )
    small = ["--rows", "3", "--length", "8", "--steps", "8", "--out", "eval"]
    said = run("eval", "--model", "run/model", *small, cwd=tmp_path)
    assert "note: --steps without effect: an autoregressive model decodes one token a call" in said
    nll = json.loads((tmp_path / "eval" / "eval.json").read_text())["metrics"]["validation_nll"]
    assert nll["n"] == 3
    assert nll["value"] > 0


def test_experiment_decompose_and_report(tmp_path):
    write_qwen2(tmp_path / "hub")
    base = [f"base.{setting}" for setting in SMALL if not setting.startswith("method")]
    (tmp_path / "near_arm.yaml").write_text(
        "base: {extends: sft-synthetic}\nmethods: [autoregressive]\nseeds: [1, 2]\n"
    )
    run("experiment", "near_arm.yaml", *base, "base.model=hub", "out=out/experiment", cwd=tmp_path)
    results = json.loads((tmp_path / "out" / "experiment" / "results.json").read_text())
    entry = next(e for e in results["summary"] if e["metric"] == "validation_nll")
    assert entry["method"] == "autoregressive"
    assert entry["n"] == 2
    assert entry["sd"] > 0
    run("decompose", "--model", "hub", "--data", "synthetic:easy", "--out", "out/decompose", "rows=8", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "decompose" / "decomposition.json").read_text())
    assert found["kind"] == "arm"
    assert found["forward_passes"] == 8 * 12 * 3
    loss = found["loss"]
    assert loss["mask_pattern"]["value"] == loss["mask_rate"]["value"] == 0 < loss["data"]["value"]
    assert loss["total"]["value"] == loss["data"]["value"]
    run("report", "out", cwd=tmp_path)
    assert "all of its noise is data noise" in (tmp_path / "out" / "report.html").read_text()
    assert_refused(in_process("recommend", "--from", "out/decompose", cwd=tmp_path), "has no mask noise to lower")


def test_masks_are_for_masked_diffusion_models_and_next_tokens_for_autoregressive_ones(tmp_path):
    write_qwen2(tmp_path / "hub")
    for arguments, words in (
        (["train", "sft-synthetic", "model=hub", "method=ppots"], ("is an autoregressive model", "found 'ppots'")),
        (["train", "sft-synthetic", "method=autoregressive"], ("'tiny' is a masked diffusion model",)),
        (["train", "sft-synthetic", "method=autoregressive+mirror"], ("'autoregressive' stands alone",)),
        (["train", "sft-synthetic", *SMALL, "model=hub", "block_size=8"], ("masks no blocks",)),
        (["experiment", "quickstart", "base.model=hub"], ("is an autoregressive model",)),
        (["fit", "--model", "hub"], ("is an autoregressive model",)),
        (["decompose", "--model", "hub", "--gradient"], ("key 'gradient': expected a masked diffusion model",)),
        (["decompose", "--methods", "autoregressive"], ("'tiny' is a masked diffusion model",)),
        (["train", "sft-synthetic", *SMALL, "model=hub", "decoding.guidance=1"], ("decoding.guidance",)),
    ):
        assert_refused(in_process(*arguments, "out=refused", cwd=tmp_path), *words)
    assert not (tmp_path / "refused" / "model").exists(), "refused before training"
