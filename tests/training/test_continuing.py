"""A run that goes on ends as one that was never stopped: no step more, the same counters, and a record of what was."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from stabledllm.errors import UserError
from stabledllm.training import parts, run
from tests.fakes.run import small_run, train
from tests.fakes.trainer import make_trainer
from tests.training.test_identity import as_before


class Stopped(Exception):
    """In the place of a kill."""


def stopped(*_):
    raise Stopped


def weights(settings: dict) -> bytes:
    return (Path(settings["out"]) / "model" / "model.safetensors").read_bytes()


WAYS = {
    "plain": {},
    "constant rate": {"trainer": {"lr_scheduler_type": "constant", "learning_rate": 1e-2}},
    "accumulation": {"micro_batch": 1},
    "packing": {"packing": True, "micro_batch": 2},
    "last step is no checkpoint's": {"save_every": 3},
    "epochs": {"steps": None, "epochs": 1.4},
    "whole epochs": {"steps": 6, "save_every": 3},
    "short last step of an epoch": {"steps": 3, "save_every": 3},
    "adaptive": {"method": "adaptive+mirror+ema", "adaptive": {"every": 2}},
    "every step logged": {"log_every": 1, "eval_every": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_whose_last_checkpoint_is_at_its_end_takes_no_step_more(tmp_path, monkeypatch, way):
    whole, settings = (small_run(tmp_path) | WAYS[way] | {"out": str(tmp_path / name)} for name in ("whole", "cut"))
    settings["trainer"] = whole["trainer"] = {"use_cpu": True} | WAYS[way].get("trainer", {})
    expected, _ = train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", stopped)
        with pytest.raises(Stopped):
            train(settings)

    def no_step(*_, **__):
        raise AssertionError("took a step")

    monkeypatch.setattr(run.MDMTrainer, "training_step", no_step)
    record, said = train(settings)
    assert any(f"checkpoint-{expected['steps']}" in line for line in said), said
    for key in ("steps", "forward_passes", "history", "adaptive", "metrics", "parts", "identity"):
        assert record[key] == expected[key], key
    assert weights(settings) == weights(whole)


@pytest.mark.parametrize("change", [{"log_every": 3}, {"log_every": 4, "method": "mirror+ema"}], ids=str)
def test_stopped_between_two_lines_of_the_log_the_next_line_has_all_its_steps(tmp_path, monkeypatch, change):
    """The mean loss of a line was that of the steps since the resume alone."""
    whole, settings = (small_run(tmp_path) | change | {"out": str(tmp_path / name)} for name in ("whole", "cut"))
    expected, _ = train(whole)
    train(settings)
    (tmp_path / "cut" / "run.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    record, said = train(settings)
    assert f"resuming from {tmp_path / 'cut' / 'checkpoint-2'}" in said
    assert record["history"] == expected["history"]
    assert record["forward_passes"] == expected["forward_passes"]
    assert weights(settings) == weights(whole)


def killed(settings: dict) -> None:
    run.MDMTrainer.finite_nll_of_rows = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train(settings)


@pytest.mark.processes
def test_killed_for_real_between_its_last_step_and_its_record(tmp_path):
    whole, settings = (small_run(tmp_path) | {"out": str(tmp_path / name)} for name in ("whole", "cut"))
    process = multiprocessing.get_context("fork").Process(target=killed, args=(settings,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "cut" / "checkpoint-4").is_dir()
    assert not (tmp_path / "cut" / "run.json").exists()
    expected, _ = train(whole)
    record, _ = train(settings)
    assert (record["steps"], record["forward_passes"]) == (4, expected["forward_passes"])
    assert weights(settings) == weights(whole)


class StopsAt(TrainerCallback):
    """Ends a run before its last step, as early stopping does."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 4:
            control.should_training_stop = True


def test_a_run_that_ended_early_stays_ended(tmp_path):
    first = make_trainer(tmp_path, steps=9, save_strategy="steps", save_steps=2)
    first.add_callback(StopsAt())
    first.train()
    assert first.state.global_step == 4
    again = make_trainer(tmp_path, steps=9, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    assert not again.recorded.losses


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    settings = small_run(tmp_path_factory.mktemp("done"))
    return settings, train(settings)[0]


@pytest.fixture
def finished(done, tmp_path):
    shutil.copytree(done[0]["out"], tmp_path / "run")
    return done[0] | {"out": str(tmp_path / "run")}


def test_a_finished_run_goes_on_to_more_steps_and_says_how_each_was_made(finished):
    record, said = train(finished, steps=6, log_every=1, allow_changed=["steps"])
    out = Path(finished["out"])
    assert f"resuming from {out / 'checkpoint-4'}" in said
    assert record["steps"] == 6
    assert record["config"]["steps"] == 6
    assert [(part["steps"], part["changed"]) for part in record["parts"]] == [
        ([1, 4], {"log_every": 3, "steps": 4}), ([5, 6], {})
    ]  # fmt: skip
    # The schedule of 6 steps holds from the fifth on: nothing of the old one, whose rate is 0 there, is left.
    rates = {line["step"]: line["learning_rate"] for line in record["history"] if "learning_rate" in line}
    assert rates[5] == pytest.approx(5e-5 * 2 / 6)
    assert rates[6] == pytest.approx(5e-5 / 6)
    assert json.loads((out / "run-4.json").read_text())["steps"] == 4
    again, said = train(finished, steps=6)
    assert said == [f"{out}: already finished"]
    assert again["steps"] == 6
    with pytest.raises(UserError, match="steps=6, found steps=4"):
        train(finished)


@pytest.mark.parametrize("has_record", [True, False])
def test_a_run_of_an_older_version_goes_on_to_more_steps(finished, has_record):
    # Its checkpoint says that the Trainer was to stop there, and not how many steps it was to take.
    as_before(finished)
    if not has_record:
        (Path(finished["out"]) / "run.json").unlink()
    record, _ = train(finished, steps=6, log_every=1, allow_changed=["steps"])
    assert record["steps"] == 6
    rates = {line["step"]: line["learning_rate"] for line in record["history"] if "learning_rate" in line}
    assert [rates[5], rates[6]] == pytest.approx([5e-5 * 2 / 6, 5e-5 / 6])


def test_another_learning_rate_holds_from_the_next_step_on(finished):
    change = {"learning_rate": 1e-2, "weight_decay": 0.0, "lr_scheduler_type": "constant"}
    (Path(finished["out"]) / "run.json").unlink()
    shutil.rmtree(Path(finished["out"]) / "checkpoint-4")
    names = [f"trainer.{name}" for name in change]
    record, _ = train(finished, log_every=1, trainer=change, allow_changed=names)
    rates = {line["step"]: line["learning_rate"] for line in record["history"] if "learning_rate" in line}
    assert rates[3] == rates[4] == 1e-2
    assert record["parts"][0]["changed"] == {"log_every": 3} | {f"trainer.{name}": None for name in change}
    assert record["parts"][1]["steps"] == [3, 4]


def test_what_would_have_no_effect_is_refused_and_nothing_is_lost(finished):
    before = (Path(finished["out"]) / "run.json").read_bytes()
    with pytest.raises(UserError, match="expected more steps than the 4 that are done"):
        train(finished, trainer={"learning_rate": 1.0}, allow_changed=["trainer"])
    with pytest.raises(UserError, match=r"steps: expected at least the 4 that are done .* found 2"):
        train(finished, steps=2, allow_changed=["steps"])
    assert (Path(finished["out"]) / "run.json").read_bytes() == before
    for folder in Path(finished["out"]).glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="expected a whole checkpoint to go on from"):
        train(finished, steps=6, allow_changed=["steps"])


def test_a_resumed_runs_record_holds_what_its_steps_were_made_with(finished):
    """The end of a killed run is done under other settings that no step has seen."""
    (Path(finished["out"]) / "run.json").unlink()
    record, _ = train(finished, log_every=1, micro_batch=2)
    assert record["config"]["log_every"] == 3
    assert record["config"]["micro_batch"] is None
    assert [part["steps"] for part in record["parts"]] == [[1, 4]]


def test_other_packages_and_devices_are_said_and_recorded(finished, monkeypatch):
    (Path(finished["out"]) / "run.json").unlink()
    shutil.rmtree(Path(finished["out"]) / "checkpoint-4")
    other = parts.versions() | {"torch": "99.0"}
    monkeypatch.setattr(parts, "versions", lambda: other)
    record, said = train(finished)
    note = next(line for line in said if line.startswith("note: "))
    assert re.search(r"torch \S+ -> 99\.0", note)
    assert [part["versions"]["torch"] for part in record["parts"]] == [torch.__version__, "99.0"]
    assert [part["steps"] for part in record["parts"]] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, []),
        ({"versions": {"torch": "1"}}, {}, ["torch 1 -> 2"]),
        ({"device": "NVIDIA H200"}, {}, ["device NVIDIA H200 -> cpu (x86_64, 2 threads)"]),
        ({"device": "cpu (x86_64, 8 threads)"}, {}, []),
        ({"devices": 4}, {}, ["4 -> 1 devices"]),
        ({"versions": None}, {}, []),
    ],
)
def test_phrases_of_what_is_another_one(before, now, expected):
    same = {"versions": {"torch": "2"}, "device": "cpu (x86_64, 2 threads)", "devices": 1}
    assert parts.changes_between(same | before, same | now) == expected


def test_parts_join_where_nothing_changed():
    one = {"config": {"a": {"b": 1}, "out": "x"}, "versions": {}, "device": "cpu", "devices": 1}
    first = parts.parts_until([], one, 3, 2.0)
    assert parts.parts_until(first, one | {"config": {"a": {"b": 1}, "out": "y"}}, 5, 1.0)[0]["steps"] == [1, 5]
    assert parts.parts_until(first, one, 5, 1.0)[0]["seconds"] == 3.0
    second = parts.parts_until(first, one | {"config": {"a": {"b": 2}, "out": "x"}}, 5, 1.0)
    assert [part["steps"] for part in second] == [[1, 3], [4, 5]]
    assert [part["changed"] for part in parts.published(second)] == [{"a.b": 1}, {}]
    assert parts.parts_until(second, one, 5, 1.0) == second, "no step, no part"
    assert parts.published([parts.unknown_part(4)])[0]["changed"] is None
