"""``experiment --quick``: a small experiment of its own, whose results advise nothing."""

from __future__ import annotations

import json

import pytest

from stabledllm.config import load_recipe
from stabledllm.experiment.quick import SEEDS, STEPS, TEST_ROWS, VALIDATION_ROWS, note_on, quickened
from tests.cli.runner import in_process


def test_what_is_cut_and_what_stays():
    whole = load_recipe("quickstart", ["base.trainer.warmup_steps=100", "base.steps=200"])
    quick = quickened(whole, [])
    assert (quick.base.steps, quick.base.trainer["warmup_steps"]) == (STEPS, 100 * STEPS // 200)
    assert (quick.methods, quick.seeds) == (whole.methods, whole.seeds[:SEEDS])
    assert quick.out == f"{whole.out}-quick"
    assert quick.base.data.validation_rows < whole.base.data.validation_rows
    assert quick.base.ppots.rows < whole.base.ppots.rows
    assert whole.base.steps == 200, "the settings that were given stay as they are"


def test_what_is_typed_stays():
    typed = ["base.steps=30", "seeds=[1,2,3]", "out=here", "base.data.test_rows=40", "base.ppots.rows=50"]
    quick = quickened(load_recipe("quickstart", typed), [one.partition("=")[0] for one in typed])
    assert (quick.base.steps, quick.seeds, quick.out) == (30, [1, 2, 3], "here")
    assert (quick.base.data.test_rows, quick.base.ppots.rows) == (40, 50)
    assert "30 steps and 3 seeds a method" in note_on(quick)


def test_few_steps_are_not_made_more():
    quick = quickened(load_recipe("quickstart", ["base.steps=3", "seeds=[1]"]), [])
    assert (quick.base.steps, quick.seeds) == (3, [1])
    assert "3 steps and 1 seed a method" in note_on(quick)


def test_all_rows_are_cut_to_few():
    quick = quickened(load_recipe("quickstart", ["base.data.validation_rows=null", "base.data.test_rows=null"]), [])
    assert (quick.base.data.validation_rows, quick.base.data.test_rows) == (VALIDATION_ROWS, TEST_ROWS)
    typed = ["base.data.validation_rows=null", "base.data.test_rows=4"]
    quick = quickened(load_recipe("quickstart", typed), [one.partition("=")[0] for one in typed])
    assert (quick.base.data.validation_rows, quick.base.data.test_rows) == (None, 4)


def test_typed_epochs_stay():
    typed = ["base.steps=null", "base.epochs=2"]
    quick = quickened(load_recipe("quickstart", typed), ["base.epochs"])
    assert (quick.base.steps, quick.base.epochs) == (None, 2)
    assert "2 epochs and" in note_on(quick)
    warm = ["base.steps=null", "base.trainer.warmup_steps=100"]
    quick = quickened(load_recipe("quickstart", warm), [])
    assert (quick.base.steps, quick.base.trainer["warmup_steps"]) == (STEPS, STEPS // 2)


@pytest.mark.slow
def test_it_runs_beside_the_whole_one_and_advises_nothing(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}", "response": "x"}) for i in range(40)))
    (tmp_path / "mine.yaml").write_text(
        "base: {extends: sft, model: tiny, steps: 2, batch: 2, data: {train: mine.jsonl, validation_share: 0.2}}\n"
        "methods: [standard, mirror]\nseeds: [1, 2, 3]\nout: runs/mine\n"
    )
    shown = in_process("experiment", "mine.yaml", "--quick", "--jobs", "1", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Quick: 2 steps and 2 seeds a method" in shown.stdout.replace("\n", " ")
    results = json.loads((tmp_path / "runs" / "mine-quick" / "results.json").read_text())
    assert len(results["runs"]) == 4
    (told,) = results["advice"]
    assert told.startswith("Quick: ")
    assert not (tmp_path / "runs" / "mine").exists()
