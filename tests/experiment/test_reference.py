"""Standard at other budgets: runs of the experiment like any other, in its folder, resumed and never repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stabledllm.cli.dry_run import of_experiment
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.experiment.at_once import in_words
from stabledllm.experiment.budget import rows_seen, run_share, standard_steps, steps_at
from stabledllm.experiment.checks import check_experiment
from stabledllm.experiment.grid import title_of
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.reference import check_reference
from stabledllm.experiment.run import run_experiment
from stabledllm.experiment.side_by_side import SideBySide
from stabledllm.reports.html import write_report
from stabledllm.reports.printed import experiment_text
from stabledllm.reports.stored import read
from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call
from tests.fakes.study import quiet, settings


def wanted(out, **more) -> ExperimentSettings:
    return settings(out).model_copy(update=more)


def test_a_folder_is_extended_by_standard_at_other_budgets(tmp_path):
    """The ordinary runs are shared, a second call repeats nothing, and a folder without budgets reads as before."""
    before = run_experiment(settings(tmp_path), quiet)
    assert "compute_saved" not in before
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/run.json")}
    assert len(made) == 4
    results = run_experiment(wanted(tmp_path, standard_at=[1.0, 2.0]), quiet)
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["mirror", "standard", "standard@2x"]
    assert results["runs"] == before["runs"]
    assert results["summary"] == before["summary"], "other budgets are no methods that are compared"
    assert results["status"] == {"finished": 6, "planned": 6}
    assert [(r["method"], r["seed"], r["forward_passes"]) for r in results["reference_runs"]] == [
        ("standard@2x", 1, 24),
        ("standard@2x", 2, 24),
    ]
    (entry,) = [m for m in results["compute_saved"]["metrics"] if m["metric"] == "validation_nll"]
    assert [(p["multiple"], p["forward_passes"], p["n"]) for p in entry["curve"]] == [(1.0, 12, 2), (2.0, 24, 2)]
    assert [(m["method"], m["n"], m["least"], m["most"]) for m in entry["methods"]] == [("mirror", 2, 0.5, 1.0)]
    assert "each with a schedule of its own, took forward passes: 24 in every run." in results["notes"][1]
    again = run_experiment(wanted(tmp_path, standard_at=[2.0]), quiet)
    assert {key: again[key] for key in again if key != "config"} == {k: results[k] for k in results if k != "config"}
    stored = read(tmp_path / "results.json", "results")
    printed = "\n".join(experiment_text(stored)).replace("\n", " ")
    assert ("Compute saved, by validation NLL" in printed) == entry["improves"]
    assert ("In validation NLL, Standard is not told to gain from more" in printed) == (not entry["improves"])
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Compute saved" in text
    assert "Standard at 2x" in text, "among all runs"
    ordinary = json.loads((tmp_path / "runs" / "standard@2x" / "seed-1" / "run.json").read_text())
    assert (ordinary["method"], ordinary["steps"], ordinary["config"]["steps"]) == ("standard", 6, 6)


def rows_of(count: int) -> list[TokenRow]:
    return [TokenRow(list(range(6)), 3)] * count


@pytest.mark.parametrize("equal", ["compute", "steps"])
@pytest.mark.parametrize("length", [{"steps": 5}, {"steps": 23}, {"epochs": 1}, {"epochs": 2.5}])
def test_the_steps_bring_the_forwards_nearest_to_the_multiple(equal, length):
    """Against all numbers of steps, where the last step of an epoch is short and where it is not."""
    for count in (7, 22, 48):
        tree = {"base": {"batch": 12} | length, "equal": equal, "standard_at": [0.5, 1.5, 3]}
        experiment = ExperimentSettings.model_validate(tree)
        standard = runs_of(experiment)[0]
        base, once = experiment.base, standard_steps(experiment.base, count)
        assert steps_at(1.0, base, rows_of(count)) == once
        for multiple in (0.5, 1.5, 3.0):
            share = run_share(standard.method, 1, experiment, None, rows_of(count), multiple)
            budget = multiple * rows_seen(once, 12, count)
            every = [abs(rows_seen(steps, 12, count) - budget) for steps in range(1, 4 * once + 2)]
            assert abs(rows_seen(share["steps"], 12, count) - budget) == min(every), (count, multiple)
            assert share["batch"] == 12


def test_a_longer_run_has_a_longer_schedule():
    trainer = {"warmup_steps": 10, "lr_scheduler_kwargs": {"num_decay_steps": 20}}
    experiment = ExperimentSettings(base={"steps": 100, "batch": 4, "trainer": trainer}, standard_at=[1.5])
    share = run_share(runs_of(experiment)[0].method, 1, experiment, None, rows_of(40), 1.5)
    assert share["steps"] == 150
    assert share["trainer"] == {"warmup_steps": 15, "lr_scheduler_kwargs": {"num_decay_steps": 30}}
    streamed = TrainSettings(steps=100, data={"streaming": True, "train": "jsonl:x"})
    assert steps_at(0.75, streamed, rows_of(1)) == 75


def test_its_runs_are_planned_counted_and_named():
    experiment = ExperimentSettings(methods=["standard", "mirror"], seeds=[1, 2, 3], standard_at=[2, 1, 0.75])
    runs = runs_of(experiment)
    assert [run.name for run in runs] == ["standard", "mirror", "standard@0.75x", "standard@2x"]
    assert in_words(experiment).startswith("an experiment of (2 methods + 2 other budgets of Standard) x 3 seeds")
    said = "\n".join(of_experiment(experiment, runs, SideBySide(1)))
    assert "(2 methods + 2 other budgets of Standard) x 3 seeds = 12 runs" in said
    assert "standard: 32 rows a step, 0.75 times Standard's forward passes" in said
    run = TrainSettings(out="x/runs/standard@2x/seed-1")
    assert (title_of(run), title_of(TrainSettings())) == ("standard@2x, seed 42", "standard, seed 42")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"methods": ["mirror"]}, "key 'standard_at': expected 'standard' among methods"),
        ({"base": {"objective": {"kind": "grpo"}}}, "beside objective.kind=grpo"),
        ({"base": {"block_schedule": {"sizes": [2, 4], "steps": [3]}}}, "beside base.block_schedule"),
    ],
)
def test_budgets_without_meaning_are_refused(more, told):
    with pytest.raises(UserError, match=told):
        check_reference(ExperimentSettings.model_validate(more | {"standard_at": [2.0]}))
    check_reference(ExperimentSettings.model_validate(more | {"standard_at": []}))


def test_one_alone_makes_no_curve():
    with pytest.raises(UserError, match="beside 1"):
        check_reference(ExperimentSettings(standard_at=[1.0]))


def test_budgets_that_are_none_are_refused_before_anything_is_touched(tmp_path):
    for value, told in (
        ("[1.5,1.5]", "expected each one once, found 1.5 twice"),
        ("[0]", "standard_at"),
        ("[nan]", "standard_at"),
        ("[1000]", "standard_at"),
    ):
        assert_refused(call("validate", "quickstart", f"standard_at={value}", cwd=tmp_path), told)
    assert_refused(
        call("validate", "quickstart", "standard_at=[2]", "methods=[mirror]", cwd=tmp_path), "'standard' among"
    )
    with pytest.raises(UserError, match=r"differ by a step, found 1 and 1.1, both 3 optimizer steps"):
        check_experiment(wanted(tmp_path / "new", standard_at=[1.1]), quiet)
    assert not Path(tmp_path / "new").exists()
