"""Who waits for a long first step sees at once that the run has begun."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from stabledllm.errors import Diverged
from stabledllm.runtime import showing
from stabledllm.training import run
from stabledllm.training.progress import StepBar
from tests.fakes.run import small_run, train

STATE = SimpleNamespace(is_world_process_zero=True, max_steps=7, global_step=0)


def test_in_a_terminal_the_bar_comes_before_the_first_step_ends(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = StepBar("standard, seed 1")
    bar.on_train_begin(None, STATE, None)
    assert "standard, seed 1:   0%" in (seen := terminal.getvalue())
    assert "0/7" in seen
    bar.on_train_end(None, None, None)


def test_elsewhere_nothing_is_drawn_over(capfd, monkeypatch):
    monkeypatch.setattr(showing, "SILENT_FOR", 0.0)  # the lines of the log say as much, so that none is told
    bar = StepBar("standard, seed 1")
    bar.on_train_begin(None, STATE, None)
    bar.on_step_end(None, SimpleNamespace(global_step=1), None)
    bar.on_train_end(None, None, None)
    assert capfd.readouterr().err == ""


def test_a_run_has_one_bar_and_not_transformers_own_beside_it(tmp_path, monkeypatch):
    made, build = [], run.build_trainer
    monkeypatch.setattr(run, "build_trainer", lambda *args, **more: made.append(build(*args, **more)) or made[-1])
    train(small_run(tmp_path))
    kinds = [type(callback) for callback in made[0][0].callback_handler.callbacks]
    assert kinds.count(StepBar) == 1
    assert DEFAULT_PROGRESS_CALLBACK not in kinds


def test_a_run_that_ends_early_leaves_no_bar(tmp_path, monkeypatch):
    def diverging(*_, **__):
        raise Diverged("the loss was not finite", 1)

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(run.MDMTrainer, "training_step", diverging)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with pytest.raises(Diverged):
        train(small_run(tmp_path))
    assert "standard, seed 42:" in terminal.getvalue()
    assert not [bar for bar in tqdm._instances if "seed 42" in bar.desc]
