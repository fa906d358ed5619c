"""Runs on pairs killed wherever they are, and policy gradients on two ranks of which one dies: the same numbers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.evaluation import rollouts
from stabledllm.training import preference_run, preferences
from stabledllm.training.run import MDMTrainer, train
from tests.cli.forked import Forked, ranks
from tests.training import test_policy_kills as policies
from tests.training.test_policy_kills import at_call


def settings(folder: Path, out: str) -> TrainSettings:
    pairs = [{"prompt": f"{i}?", "chosen": f"It is {'so ' * (i % 5)}{i}.", "rejected": "No!"} for i in range(9)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return TrainSettings.model_validate(
        {
            "model": "tiny",
            "data": {"train": str(folder / "pairs.jsonl"), "validation_share": 0.2},
            "objective": {"kind": "dpo"},
            "dpo": {"budget": 2, "reference": "kept", "tokens_per_forward": 100},
            "method": "lowdisc+fixedcount",
            "batch": 4,
            "steps": 4,
            "save_every": 1,
            "log_every": 1,
            "eval_draws": 1,
            "untuned": False,
            "trainer": {"learning_rate": 1e-3, "disable_tqdm": True, "use_cpu": True},
            "out": str(folder / out),
        }
    )


PLACES: dict[str, Callable[[], None]] = {
    "while the reference is asked": lambda: at_call(preference_run, "values_of", 2),
    "while its values are written": lambda: at_call(preference_run, "save_file", 1),
    "between the passes of a step": lambda: at_call(preferences.DPOTrainer, "back_through", 3),
    "in the middle of a checkpoint": lambda: at_call(MDMTrainer, "_save_rng_state", 2),
    "while held-out pairs are measured": lambda: at_call(preferences.DPOTrainer, "pair_metrics", 1),
}


def left(folder: Path, out: str, record: dict) -> dict:
    weights = (folder / out / "model" / "model.safetensors").read_bytes()
    return {"weights": weights, "history": record["history"], "metrics": record["metrics"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pairs")
    return left(folder, "run", train(settings(folder, "run"), say=lambda _: None))


IN_EVERY_TEST = ("while its values are written", "between the passes of a step")


@pytest.mark.processes
@pytest.mark.parametrize(
    "place", [each if each in IN_EVERY_TEST else pytest.param(each, marks=pytest.mark.long) for each in PLACES]
)
def test_the_same_command_ends_in_the_same_numbers(tmp_path, whole, place):
    def dying() -> None:
        PLACES[place]()
        train(settings(tmp_path, "run"), say=lambda _: None)

    ended = Forked(dying, tmp_path).ended()
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert left(tmp_path, "run", train(settings(tmp_path, "run"), say=lambda _: None)) == whole


def one_rank(settings: TrainSettings, dies_in: int | None) -> None:
    """One of two ranks of a run of policy gradients; rank 1 dies in this call of ``generate``, and counts them."""
    if os.environ["RANK"] == "1" and dies_in:
        at_call(rollouts, "generate", dies_in)
    train(settings, say=lambda _: None, rewards=[policies.digits])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # left to the interpreter's exit, gloo's threads sometimes abort the process


@pytest.mark.long
@pytest.mark.processes
def test_a_rank_that_dies_repeats_no_finished_response(tmp_path):
    """Rank 1 decodes two batches of a round, and dies with one of the second; rank 0 is ended, and both start again."""
    for out, dies_in in (("whole", None), ("killed", 4), ("killed", None)):
        run = policies.settings(tmp_path, out).model_copy(update={"batch": 4})  # prompts: two for each rank
        both = ranks(lambda env, run=run, n=dies_in: Forked(lambda: one_rank(run, n), tmp_path, env))
        ended = both[1].ended()
        if dies_in:
            assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
            both[0].kill()
            there = {path: path.read_bytes() for path in (tmp_path / out).glob("rollouts/*/*.jsonl")}
            assert (tmp_path / out / "rollouts/round-000001/rollouts-1.jsonl") in there, "its finished batch"
        else:
            assert [each.ended().returncode for each in both] == [0, 0], both[0].ended().stderr[-2000:]
    assert all(path.read_bytes().startswith(content) for path, content in there.items()), "what is there is kept"
    records = [json.loads((tmp_path / out / "run.json").read_text()) for out in ("whole", "killed")]
    found = [policies.left(tmp_path, out, each) for out, each in zip(("whole", "killed"), records, strict=True)]
    assert found[0] == found[1]
