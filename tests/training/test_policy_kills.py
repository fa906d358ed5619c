"""Policy gradients killed for real, wherever they are: the same command ends in the same numbers, repeating nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from stabledllm.config.settings import TrainSettings
from stabledllm.evaluation import rollouts
from stabledllm.training import policy, round_making, rounds
from stabledllm.training.run import MDMTrainer, train

STEPS, INNER, BATCH, GROUP = 4, 2, 3, 2


def digits(completions, **_):
    """The share of digits, which differs between the responses to a prompt."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) + len(text) / 99 for text in completions]


def settings(folder: Path, out: str) -> TrainSettings:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}+1=?"}) + "\n" for i in range(9)))
    return TrainSettings.model_validate(
        {
            "model": "tiny",
            "data": {"train": str(rows), "validation_share": 0},
            "objective": {"kind": "grpo"},
            "grpo": {
                "group": GROUP,
                "inner": INNER,
                "beta": 0.1,
                "rollout": {"length": 8, "steps": 2, "temperature": 2},
            },
            "method": "lowdisc+fixedcount",
            "batch": BATCH,
            "steps": STEPS,
            "save_every": 1,
            "log_every": 1,
            "generate_batch": 2,
            "untuned": False,
            "trainer": {"learning_rate": 1e-3, "disable_tqdm": True, "use_cpu": True},
            "out": str(folder / out),
        }
    )


def run(folder: Path, out: str) -> dict:
    return train(settings(folder, out), say=lambda _: None, rewards=[digits])


def left(folder: Path, out: str, record: dict) -> dict:
    """What a run is compared by: its weights, its log, and what people read of its responses."""
    home = folder / out
    lines = [json.loads(line) for line in (home / "history.jsonl").read_text().splitlines()]
    return {
        "weights": (home / "model" / "model.safetensors").read_bytes(),
        "history": [{k: v for k, v in line.items() if k not in ("time", "tokens_per_second")} for line in lines],
        "record": record["history"],
        "forwards": (record["forward_passes"], record["rollout_forward_rows"]),
        "responses": [without_folder(path) for path in sorted(home.glob("rollouts/*/responses.jsonl"))],
    }


def without_folder(path: Path) -> list[dict]:
    rows = map(json.loads, path.read_text().splitlines())
    return [row | {"origin": Path(row["origin"]).name} for row in rows]


def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name: str, number: int) -> None:
    """Die at the n-th call of a function."""
    real, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        return dies() if len(calls) == number else real(*args, **kwargs)

    setattr(owner, name, counted)


ROUND = BATCH * GROUP // 2
"""Batches of responses in a round."""
PLACES: dict[str, tuple[Callable[[], None], int]] = {
    "in the first responses": (lambda: at_call(rollouts, "generate", 2), 2 * ROUND - 1),
    "in the responses of the second round": (lambda: at_call(rollouts, "generate", ROUND + 3), 1),
    "while rewards are asked for": (lambda: at_call(rounds.RoundFolder, "keep_scores", 1), ROUND),
    "before the old policy's values": (lambda: at_call(round_making, "values_of_round", 2), 0),
    "while those are written": (lambda: at_call(rounds.RoundFolder, "keep_values", 2), 0),
    "between the steps of a round": (lambda: at_call(policy.GRPOTrainer, "compute_loss", 4), 0),
    "in the middle of a checkpoint": (lambda: at_call(MDMTrainer, "_save_rng_state", 3), 0),
}
"""Where the run dies, and how many batches of responses are decoded afterwards."""


def killed(folder: Path, out: str, place: str) -> None:
    PLACES[place][0]()
    run(folder, out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    found = left(folder, "run", run(folder, "run"))
    assert any(row["advantage"] for rows in found["responses"] for row in rows), "there is something to learn"
    return found


IN_EVERY_TEST = ("in the responses of the second round", "while rewards are asked for")


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [each if each in IN_EVERY_TEST else pytest.param(each, marks=pytest.mark.long) for each in PLACES]
)
def test_the_same_command_ends_in_the_same_numbers(tmp_path, monkeypatch, whole, place):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path, "run", place))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    real, decoded = rollouts.generate, []
    monkeypatch.setattr(rollouts, "generate", lambda *args, **kwargs: decoded.append(1) or real(*args, **kwargs))
    again = left(tmp_path, "run", run(tmp_path, "run"))
    assert len(again["responses"]) == STEPS // INNER
    assert again == whole
    assert len(decoded) == PLACES[place][1], "a finished response is never drawn again"
