"""``history.jsonl`` holds the Trainer's log as it comes, and after a kill what an unbroken run would hold."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from stabledllm.training import log_lines, run
from stabledllm.training.history import HISTORY, History
from stabledllm.training.log_lines import LogLines
from tests.fakes.run import small_run, train

LOGGED = {"log_every": 1, "eval_every": 2, "save_every": 2, "steps": 6}
_TIMES = ("time", "tokens_per_second")


def lines(settings: dict) -> list[dict]:
    return [json.loads(line) for line in (Path(settings["out"]) / HISTORY).read_text().splitlines()]


def without_times(found: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in found]


def merged_by_step(found: list[dict]) -> list[dict]:
    entries: dict[int, dict] = {}
    for line in found:
        if "checkpoint" not in line:
            entries.setdefault(line["step"], {}).update(line)
    return list(entries.values())


@pytest.mark.parametrize("change", [{}, {"method": "mirror+ema", "micro_batch": 2}, {"log_every": 4}], ids=str)
def test_it_is_the_trainers_log(tmp_path, change):
    settings = small_run(tmp_path) | LOGGED | change
    record, said = train(settings)
    found = lines(settings)
    assert merged_by_step(without_times(found)) == record["history"]
    assert [line["checkpoint"] for line in found if "checkpoint" in line] == [f"checkpoint-{s}" for s in (2, 4, 6)]
    assert [line["step"] for line in found] == sorted(line["step"] for line in found)
    assert all(line["tokens_per_second"] > 0 for line in found if "loss" in line)
    told = [text for text in said if re.match(r" +\d+ ", text)]
    assert len(told) == len(found), "each line was told too"


def test_the_lines_told_hold_the_figures_in_columns(tmp_path):
    settings = small_run(tmp_path) | LOGGED | {"method": "ema"}
    _, said = train(settings)
    first = next(line for line in lines(settings) if "loss" in line)
    heading, told = (next(text for text in said if text.split()[:1] == [word]) for word in ("step", "1"))
    assert re.split(r" {2,}", heading.strip()) == [
        "step", "loss", "loss (ema)", "learning rate", "gradient norm", "tokens/s",
    ]  # fmt: skip
    assert len(told) == len(heading) <= 80
    cells = told.split()
    expected = [1, first["loss"], first["loss_ema"], first["learning_rate"], first["grad_norm"]]
    for cell, value in zip(cells, expected, strict=False):
        assert float(cell) == pytest.approx(value, rel=5e-3)


def test_tokens_are_those_of_the_rows_each_once(tmp_path, monkeypatch):
    """Two views do not count twice, and padding does not count."""
    counted = []
    ask = run.MDMTrainer.tokens_since_asked
    monkeypatch.setattr(run.MDMTrainer, "tokens_since_asked", lambda self: counted.append(ask(self)) or counted[-1])
    settings = small_run(tmp_path) | {"method": "mirror", "batch": 5, "steps": 4, "log_every": 2, "save_every": None}
    made, build = [], run.build_trainer
    monkeypatch.setattr(run, "build_trainer", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    train(settings)
    every_row = sum(len(row) for row in made[0][0].train_dataset.rows)
    assert counted == [every_row, every_row]


def test_evaluating_and_saving_do_not_slow_it(tmp_path, monkeypatch):
    nll, save = run.MDMTrainer.nll_of_rows, run.MDMTrainer._save_checkpoint

    def slowly(method):
        return lambda *a, **k: (time.sleep(0.4), method(*a, **k))[1]

    settings = small_run(tmp_path) | LOGGED | {"eval_every": 1, "save_every": 1, "steps": 3}
    monkeypatch.setattr(run.MDMTrainer, "nll_of_rows", slowly(nll))
    monkeypatch.setattr(run.MDMTrainer, "_save_checkpoint", slowly(save))
    train(settings)
    tokens = 4 * 20  # at the least, in each step
    rates = [line["tokens_per_second"] for line in lines(settings) if "loss" in line]
    assert min(rates[1:]) > tokens / 0.4, rates


class Killed(Exception):
    """In the place of a kill."""


def stop_at(step: int, monkeypatch) -> None:
    make_step = run.MDMTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return make_step(self, *args, **kwargs)

    monkeypatch.setattr(run.MDMTrainer, "training_step", stopping)


def damaged_by(way: str, path: Path) -> None:
    """What a kill, or an older version, leaves of the file."""
    whole = path.read_text()
    if way == "cut in half":
        path.write_text(whole + '{"step": 5, "lo')
    elif way == "the checkpoint's line is missing":
        path.write_text("".join(line + "\n" for line in whole.splitlines() if "checkpoint-4" not in line))
    elif way == "no file":
        path.unlink()
    elif way == "no lines since step 2":
        path.write_text("".join(line + "\n" for line in whole.splitlines() if json.loads(line)["step"] <= 2))


@pytest.mark.parametrize(
    "way", ["as it is", "cut in half", "the checkpoint's line is missing", "no lines since step 2", "no file"]
)
def test_a_run_that_goes_on_has_no_step_twice(tmp_path, monkeypatch, way):
    whole, cut = (small_run(tmp_path) | LOGGED | {"out": str(tmp_path / name)} for name in ("whole", "cut"))
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(Killed):
            train(cut)
    assert lines(cut)[-1]["step"] == 5, "a step after the checkpoint was written"
    damaged_by(way, tmp_path / "cut" / HISTORY)
    train(cut)
    expected, found = without_times(lines(whole)), without_times(lines(cut))
    if way == "no file":  # of earlier checkpoints nothing is known
        expected.remove({"step": 2, "checkpoint": "checkpoint-2"})
    assert found == expected


def test_a_run_that_begins_anew_keeps_no_line(tmp_path):
    settings = small_run(tmp_path) | LOGGED
    train(settings)
    first = without_times(lines(settings))
    (tmp_path / "run" / "run.json").unlink()
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(folder)
    train(settings)
    assert without_times(lines(settings)) == first


def test_what_json_does_not_have_is_null(tmp_path):
    history = History(tmp_path / HISTORY)
    history.add(1, {"loss": 1.0, "grad_norm": math.inf})
    history.add(2, {"loss": math.nan})
    first, second = map(json.loads, (tmp_path / HISTORY).read_text().splitlines())
    assert (first["grad_norm"], second["loss"]) == (None, None)


def test_a_long_run_says_once_how_long_the_rest_takes(tmp_path, monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(log_lines.time, "perf_counter", lambda: clock[0])
    shown = LogLines(tmp_path, lambda: 100, say=said.append)
    state = SimpleNamespace(global_step=50, max_steps=300, is_world_process_zero=True, log_history=[])
    shown.on_train_begin(None, state, None)
    for step in range(51, 60):
        clock[0] += 2.0
        state.global_step = step
        shown.on_step_end(None, state, None)
    assert said == ["about 8 min for the 247 steps left"], "3 steps of 2 s were enough to know"


def test_a_run_that_is_soon_over_tells_no_time(tmp_path, monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(log_lines.time, "perf_counter", lambda: clock[0])
    shown = LogLines(tmp_path, lambda: 100, say=said.append)
    state = SimpleNamespace(global_step=0, max_steps=12, is_world_process_zero=True, log_history=[])
    shown.on_train_begin(None, state, None)
    for step in range(1, 13):
        clock[0] += 2.0
        state.global_step = step
        shown.on_step_end(None, state, None)
    assert said == []


def test_an_evaluation_before_the_first_step_is_there_once(tmp_path, monkeypatch):
    """It is repeated by every start: by one from a checkpoint, and by one that begins anew."""
    settings = small_run(tmp_path) | LOGGED | {"trainer": {"use_cpu": True, "eval_on_start": True}}
    for step in (1, 3):
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(Killed):
                train(settings)
    train(settings)
    evaluated = [line["step"] for line in lines(settings) if "eval_nll" in line]
    assert evaluated == [0, 2, 4, 6]


def test_nothing_of_a_run_that_was_killed_before_its_first_checkpoint_is_left(tmp_path):
    history = History(tmp_path / HISTORY)
    history.add(0, {"eval_nll": 3.0})
    history.add(1, {"loss": 1.0})
    History(tmp_path / HISTORY).go_on_from(0, [], None)
    assert not (tmp_path / HISTORY).exists()


def test_lines_of_before_keep_their_times(tmp_path, monkeypatch):
    settings = small_run(tmp_path) | LOGGED
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(Killed):
            train(settings)
    before = [line for line in lines(settings) if line["step"] <= 4]
    train(settings)
    assert lines(settings)[: len(before)] == before


def test_the_rate_is_that_of_the_steps_since_the_last_line(tmp_path, monkeypatch):
    """A step takes 2 s; evaluating and saving take 10 s each."""
    clock = [0.0]
    monkeypatch.setattr(log_lines.time, "perf_counter", lambda: clock[0])
    shown = LogLines(tmp_path, lambda: 100)
    state = SimpleNamespace(global_step=0, max_steps=3, is_world_process_zero=True, log_history=[])
    shown.on_train_begin(None, state, None)
    for state.global_step, event in enumerate((shown.on_evaluate, shown.on_save, None), 1):
        clock[0] += 2.0
        shown.on_step_end(None, state, None)
        shown.on_log(None, state, None, logs={"loss": 1.0})
        if event:
            clock[0] += 10.0
            event(None, state, None)
    found = map(json.loads, (tmp_path / HISTORY).read_text().splitlines())
    assert [line["tokens_per_second"] for line in found if "loss" in line] == [50.0, 50.0, 50.0]
