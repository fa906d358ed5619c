"""Who waits for a long first step sees at once that the run has begun."""

from __future__ import annotations

from types import SimpleNamespace

from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from stabledllm.training import run
from stabledllm.training.progress import StepBar
from tests.fakes.run import small_run, train


def test_the_first_line_comes_before_the_first_step_ends(capfd):
    bar = StepBar("standard, seed 1")
    bar.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, max_steps=7, global_step=0), None)
    assert "standard, seed 1:   0%" in (seen := capfd.readouterr().err)
    assert "0/7" in seen
    bar.on_train_end(None, None, None)


def test_a_run_has_one_bar_and_not_transformers_own_beside_it(tmp_path, monkeypatch):
    made, build = [], run.build_trainer
    monkeypatch.setattr(run, "build_trainer", lambda *arguments: made.append(build(*arguments)) or made[-1])
    train(small_run(tmp_path))
    kinds = [type(callback) for callback in made[0][0].callback_handler.callbacks]
    assert kinds.count(StepBar) == 1
    assert DEFAULT_PROGRESS_CALLBACK not in kinds
