"""Block sizes over the steps of training: any split, resumed bit for bit, the last size saved, told and evaluated."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.training.block_schedule import BlockSizes
from stabledllm.training.run import train
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes.trainer import STEPS, make_trainer

SIZES = BlockSizes((1, 100, 6), (4, 5))


def run(folder, micro: int, accumulation: int, method: str = "adaptive+lowdisc+fixedcount", **kwargs):
    trainer = make_trainer(folder, method, micro=micro, accumulation=accumulation, block_size=SIZES, **kwargs)
    trainer.train()
    return trainer


def units(trainer) -> list[int]:
    return [sum(at == step for at, _ in trainer.recorded.draws) for step in range(12)]


def test_sizes_follow_the_step_whatever_the_split(tmp_path):
    whole, split = run(tmp_path / "whole", 8, 1), run(tmp_path / "split", 1, 8)
    assert split.recorded.draws == whole.recorded.draws
    assert_same_trajectory(split.recorded.losses, whole.recorded.losses)
    tokens, rows = units(whole)[0], units(whole)[4]
    assert rows == 8, "one block for each row"
    assert tokens > units(whole)[9] > rows, "single tokens, then blocks of six"
    logged = [line["block_size"] for line in whole.state.log_history if "loss" in line]
    assert logged == [1] * 4 + [100] * 5 + [6] * (STEPS - 9)
    assert whole.evaluation_meter(whole.objective).blocks.size == 6


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", 4, 2)
    run(tmp_path / "cut", 4, 2, save_strategy="steps", save_steps=7)
    resumed = make_trainer(tmp_path / "cut", "adaptive+lowdisc+fixedcount", micro=4, accumulation=2, block_size=SIZES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
    assert resumed.recorded.losses == whole.recorded.losses[7:]
    assert resumed.adaptive.state() == whole.adaptive.state(), "the moments of units"
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


SMALL = {
    "model": "tiny",
    "data": {"train": "synthetic:easy", "train_rows": 32, "validation_rows": 4, "test_rows": 1, "pad_response_to": 16},
    "method": "lowdisc+fixedcount",
    "block_schedule": {"sizes": [1, 64, 8], "steps": [2, 2]},
    "batch": 8,
    "steps": 6,
    "log_every": 1,
    "untuned": False,
}


def settings(tmp_path, **changes) -> TrainSettings:
    return TrainSettings.model_validate(SMALL | {"out": str(tmp_path)} | changes)


def test_a_run_is_told_logged_and_saved_in_its_last_size(tmp_path):
    told = []
    record = train(settings(tmp_path), say=told.append)
    text = " ".join(" ".join(told).split())
    assert "In blocks of 1 token to step 2, of 64 to step 4, then of 8, in which it is evaluated" in text
    assert record["config"]["block_size"] == 8
    assert record["config"]["decoding"]["block"] == 8
    assert load_model(str(tmp_path / "model")).model.config.block_size == 8
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["block_size"] for line in lines if "loss" in line] == [1, 1, 64, 64, 8, 8]
    assert [line["block_size"] for line in record["history"] if "loss" in line] == [1, 1, 64, 64, 8, 8]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block_schedule": {"sizes": [1, 8], "steps": [2, 2]}}, "block_schedule.steps': expected a number for each"),
        ({"block_schedule": {"sizes": [8]}}, "block_schedule.sizes': expected at least two sizes"),
        ({"block_schedule": {"steps": [8]}, "block_size": 8}, "block_schedule.sizes': expected at least two sizes"),
        ({"block_size": 4}, "block_schedule.sizes': expected the last one to be block_size=4"),
        ({"method": "ppots"}, "block_schedule': expected a method whose p"),
        ({"steps": 4}, "block_schedule.steps': expected fewer than the run's 4 steps"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, change, says):
    with pytest.raises(UserError, match=f"^key '{says}"):
        train(settings(tmp_path, **change), say=lambda _: None)
