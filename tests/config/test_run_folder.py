"""Which folders stand for a run's model, and what is said of those that have none."""

from __future__ import annotations

import json
import shutil

import pytest

from stabledllm.config.run_folder import model_in, run_behind, run_of
from stabledllm.errors import UserError
from tests.fakes.runs import write_checkpoint, write_run


@pytest.mark.parametrize("record", ["run.json", "trained.json"])
def test_a_run_that_has_ended_stands_for_its_model(tmp_path, record):
    folder = write_run(tmp_path / "run", record=record, config={"seed": 3})
    run = run_of(str(folder))
    assert (run.folder, run.model, run.config, run.notes) == (folder, folder / "model", {"seed": 3}, [])
    assert run.name == str(folder)
    assert model_in(str(folder)) == str(folder / "model")
    assert run_of(str(folder / "model")) is None, "the model alone"
    assert run_behind(str(folder / "model")) == run


def test_a_checkpoint_brings_the_settings_of_its_last_steps(tmp_path):
    folder = write_run(tmp_path / "run", config={"seed": 3})
    own = run_of(str(write_checkpoint(folder, 5, {"seed": 4})))
    assert own.config == {"seed": 4}
    assert own.name == str(own.model) == str(folder / "checkpoint-5")
    assert run_of(str(write_checkpoint(folder, 6))).config == {"seed": 3}, "an older one holds none of its own"
    assert run_of(str(write_checkpoint(folder, 7, stamp=False))) is None
    assert run_behind(str(folder / "checkpoint-5")).folder == folder


def test_other_names_stand_for_themselves(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "tiny")  # beside the shipped model of that name
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "new:tiny", "owner/name", "empty", "missing", "", "\0", "~nobody-here/x", "x" * 5000):
        assert run_of(name) is None
        assert model_in(name) == name
    assert run_of("./tiny").model.name == "model"


def test_a_folder_with_nothing_but_the_model_of_a_run_brings_no_settings(tmp_path):
    assert run_of(str(write_run(tmp_path / "run", record=None))).config == {}


def test_a_diverged_run_with_finite_weights_says_so(tmp_path):
    folder = write_run(tmp_path / "run", status="diverged", diverged={"step": 7})
    assert run_of(str(folder)).notes == [f"note: {folder} diverged at step 7; its model has the last finite weights"]


def unfinished(folder):
    folder.mkdir()
    (folder / "progress.json").write_text("{}")
    return folder


def with_checkpoints(folder):
    for step in (9, 10):
        write_checkpoint(folder, step, {"seed": 1})
    write_checkpoint(folder, 11, stamp=False)
    return folder


def going_on_from_an_earlier_end(folder):
    write_run(folder, record="run-20.json")
    return folder


def emptied(folder):
    return write_run(folder, model=False)


def diverged(folder):
    return write_run(folder, model=False, status="diverged", diverged={"step": 7})


def experiment(folder):
    write_run(folder / "runs" / "standard" / "seed-1")
    (folder / "experiment.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unfinished, ["without a model or a checkpoint yet", "run the command that trains it again", "save_every"]),
        (with_checkpoints, ["found one that has not", "name its last checkpoint, {}/checkpoint-10."]),
        (going_on_from_an_earlier_end, ["expected a run that has ended"]),
        (emptied, ["found none that is whole", "remove {}/run.json and run the command that trains it again"]),
        (diverged, ["diverged at step 7 and kept none", "lower trainer.learning_rate"]),
        (experiment, ["found the folder of an experiment", "such as {}/runs/standard/seed-1"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_run_without_a_model_is_refused_with_what_to_do(tmp_path, make, words):
    folder = make(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        model_in(str(folder))
    for word in ["model '{}': expected", *words]:
        assert word.format(folder) in str(refused.value)
    assert str(refused.value).count(". ") == 0, "one sentence"


def test_a_record_of_another_program_is_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(UserError, match="expected schema 'stabledllm/run/1'"):
        run_of(str(folder))
    shutil.rmtree(folder)
    assert run_of(str(folder)) is None
