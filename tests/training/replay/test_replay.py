"""Which steps can be replayed and from where, what is refused, and what the command prints and the report shows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.training import run as training_run
from stabledllm.training.parts import published, with_changes
from stabledllm.training.replay.point import find_point
from stabledllm.training.replay.run import replay
from tests.cli.forked import Forked, ranks
from tests.cli.runner import assert_refused, in_process
from tests.fakes.run import small_run, train

STEPS = {"steps": 9, "save_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a finished run of nine steps, a checkpoint every three."""
    folder = tmp_path_factory.mktemp("replay")
    train(small_run(folder) | STEPS)
    return folder


@pytest.fixture
def run(home, tmp_path) -> Path:
    """A copy of that run, to spoil."""
    return shutil.copytree(home / "run", tmp_path / "run")


def norms(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return {line["step"]: line["grad_norm"] for line in lines if "grad_norm" in line}


def test_the_command_rebuilds_a_step_and_keeps_its_record_for_the_report(run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = in_process("replay", "run", "--step", "6", "--wide", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    for words in (
        "step 6 from run/checkpoint-3; 2 steps before it are made again",
        "Rebuilt as recorded: gradient norm",
        "usual NLL",
    ):
        assert words in printed, done.stdout
    record = json.loads((run / "replays" / "step-6.json").read_text())
    assert record["grad_norm"] == norms(run)[6]
    assert record["sentence"] in printed
    assert {row["origin"].split(":")[0].split("/")[-1] for row in record["rows"]} == {"train.jsonl"}
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "replays"}
    assert after == before, "a run is only read"
    spike = {"step": 6, "grad_norm": record["grad_norm"], "median": 0.1, "loss": 2.0, "checkpoint": "checkpoint-3"}
    (run / "spikes.jsonl").write_text(json.dumps(spike) + "\n" + json.dumps(spike | {"step": 8}) + "\n")
    assert in_process("report", "run", cwd=tmp_path).returncode == 0
    page = (run / "report.html").read_text()
    for words in ('id="spikes"', "2 steps have a gradient norm far above", "stabledllm replay run --step 8", "Outlier"):
        assert words in page
    assert record["sentence"].split(";")[0].split("'")[0] in page


def test_a_report_without_outliers_has_no_such_section(run, tmp_path):
    assert_refused(in_process("report", "run", cwd=tmp_path), "or a run's spikes.jsonl, found the run.json of one run")


def test_any_step_can_be_rebuilt_from_the_start(home, run, tmp_path):
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"found none: they were deleted, or save_every made none; --from-start"):
        replay(run, 5)
    record = replay(run, 5, from_start=True)
    assert record["checkpoint"] is None
    assert record["steps_before"] == 4
    assert record["grad_norm"] == norms(home / "run")[5]
    assert replay(run, 1)["grad_norm"] == norms(home / "run")[1], "no step is before the first"


def test_another_split_into_micro_batches_is_the_same_step(home):
    record = replay(home / "run", 8, micro_batch=1)
    assert record["grad_norm"] == pytest.approx(norms(home / "run")[8], rel=1e-5)
    assert record["compared"].startswith("Rebuilt as recorded")


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_of_two_ranks_is_rebuilt_by_one_process(tmp_path):
    """Of ten rows in steps of four the last of an epoch is short, and a rank repeats rows that count nowhere."""
    settings = small_run(tmp_path) | STEPS | {"micro_batch": 1}

    def work() -> None:
        train(settings, trainer={"ddp_backend": "gloo"})
        torch.distributed.destroy_process_group()
        os._exit(0)  # left to the interpreter's exit, gloo's threads sometimes abort the process

    for process in ranks(lambda launched: Forked(work, tmp_path, launched)):
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-2000:]
    run = tmp_path / "run"
    for step, rows in ((5, 4), (9, 2)):
        record = replay(run, step)
        assert record["grad_norm"] == pytest.approx(norms(run)[step], rel=1e-4)
        assert record["compared"].startswith("Rebuilt as recorded"), record["compared"]
        assert sum(row["share"] for row in record["rows"]) == pytest.approx(1, abs=1e-4)
        assert len(record["rows"]) == rows


def test_a_step_that_is_not_as_recorded_is_said(run):
    path = run / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | ({"grad_norm": 9.0} if line["step"] == 8 and "loss" in line else {}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(run, 8)["compared"].startswith("NOT rebuilt as recorded: gradient norm ")


@pytest.mark.parametrize(
    ("spoil", "step", "words"),
    [
        (lambda run: shutil.rmtree(run / "checkpoint-3"), 4, "found the first at step 6: steps 7 to 9 can be replayed"),
        (lambda run: None, 10, "expected a step from 1 to 9, which the run has made, found 10"),
        (lambda run: (run / "checkpoint-6" / "pytorch_model_fsdp_0").mkdir(), 8, "found one in shards"),
    ],
    ids=["no checkpoint", "no step", "shards"],
)
def test_steps_that_cannot_be_replayed(run, spoil, step, words):
    spoil(run)
    with pytest.raises(UserError, match=words):
        find_point(run, step)


def test_folders_that_are_no_run(run, tmp_path):
    for name, words in (("run/checkpoint-3", "; name run"), ("run/model", "; name run"), (".", "found no record or")):
        assert_refused(in_process("replay", name, "--step", "2", cwd=tmp_path), "expected the folder of", words)
    assert_refused(in_process("replay", "run", "--step", "0", cwd=tmp_path), "--step")
    assert not (run / "replays").exists()


def test_data_that_changed_is_refused(tmp_path):
    settings = small_run(tmp_path) | STEPS
    train(settings)
    rows = tmp_path / "train.jsonl"
    rows.write_text(rows.read_text().replace("It is", "It was"))
    with pytest.raises(UserError, match=r"data\.content\.train"):
        replay(tmp_path / "run", 5)


def test_a_run_that_goes_on_under_other_settings(tmp_path):
    """Steps before and behind the change are rebuilt under what was in force; not across it."""
    settings = small_run(tmp_path) | STEPS | {"steps": 6}
    train(settings)
    faster = {"steps": 9, "allow_changed": ["steps", "trainer"]}
    train(settings | faster, trainer={"learning_rate": 1e-2})
    run = tmp_path / "run"
    assert find_point(run, 5).settings.trainer == {"use_cpu": True}
    for step in (5, 8):
        assert replay(run, step)["grad_norm"] == norms(run)[step]
    shutil.rmtree(run / "checkpoint-6")
    with pytest.raises(UserError, match="expected the checkpoint of step 6, behind which other settings hold"):
        find_point(run, 8)


def test_the_step_at_which_a_run_diverged(tmp_path, monkeypatch):
    compute = training_run.MDMTrainer.compute_loss

    def spoilt(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 == 5 else loss

    monkeypatch.setattr(training_run.MDMTrainer, "compute_loss", spoilt)
    with pytest.raises(training_run.Diverged):
        train(small_run(tmp_path) | STEPS)
    record = replay(tmp_path / "run", 5)
    assert record["cause"] == "not finite"
    assert "the gradient norm was not finite" in record["sentence"]
    assert all(row["share"] is None for row in record["rows"])


def test_settings_of_a_part_are_found_again():
    parts = [
        {"steps": [1, 2], "versions": {}, "device": "cpu", "devices": 1, "config": {"seed": 1, "trainer": {"a": 1}}},
        {"steps": [3, 4], "versions": {}, "device": "cpu", "devices": 1, "config": {"seed": 2, "trainer": {"b": 2}}},
    ]
    told = published(parts)
    for part, shown in zip(parts, told, strict=True):
        assert with_changes(parts[-1]["config"], shown["changed"]) == part["config"]
