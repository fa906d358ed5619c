"""Who waits for a long first step sees at once that the run has begun."""

from __future__ import annotations

from types import SimpleNamespace

from stabledllm.training.progress import StepBar


def test_the_first_line_comes_before_the_first_step_ends(capfd):
    bar = StepBar("standard, seed 1")
    bar.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, max_steps=7, global_step=0), None)
    assert "standard, seed 1:   0%" in (seen := capfd.readouterr().err)
    assert "0/7" in seen
    bar.on_train_end(None, None, None)
