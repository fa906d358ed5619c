"""Diverged runs are finished, counted and shown, and stop nobody; their metrics are in no mean."""

from __future__ import annotations

import json
import math

import pytest
from scipy import stats

from stabledllm.errors import Diverged
from stabledllm.experiment import run as experiment_run
from stabledllm.experiment.board import State, cells
from stabledllm.experiment.run import run_experiment
from stabledllm.experiment.spread import share_interval, values_of
from stabledllm.experiment.statements import statements
from stabledllm.experiment.summary import summarise
from stabledllm.reports.html import write_report
from stabledllm.reports.run_tables import cost_table, runs_table
from stabledllm.reports.tables import metrics_table
from stabledllm.training.diverged import StepWatch
from tests.cli.runner import in_process
from tests.experiment.test_summary import entry, runs
from tests.fakes.study import BASE, quiet, settings


def lost(method: str, seeds: list[int]) -> list[dict]:
    return [{"method": method, "seed": s, "metrics": {}, "status": "diverged"} for s in seeds]


def every_run() -> list[dict]:
    held = runs("standard", "accuracy", {0: 0.5, 1: 0.6, 2: 0.4}) + runs("ppots", "accuracy", {0: 0.9, 1: 0.8})
    return held + lost("ppots", [2]) + lost("mirror", [0, 1, 2])


def test_means_and_tests_are_of_the_runs_that_held_and_say_how_many_did_not():
    summary = summarise(every_run(), ["standard"])
    standard, ppots, mirror = (entry(summary, m) for m in ("standard", "ppots", "mirror"))
    assert (standard["n"], standard["n_diverged"]) == (3, 0)
    assert (ppots["n"], ppots["n_diverged"]) == (2, 1)
    assert ppots["mean"] == pytest.approx(0.85)
    assert ppots["versus_standard"]["difference"] == pytest.approx(0.3), "over the seeds that both finished"
    assert ppots["diverged_share"]["value"] == pytest.approx(1 / 3)
    assert ppots["worst_beats_best_baseline"] is False, "its worst run diverged"
    assert (mirror["n"], mirror["n_diverged"], mirror["mean"], mirror["versus_standard"]) == (0, 3, None, None)
    said = statements(every_run(), summary)[0]
    assert "standard 0 of 3 (95 % 0% to 71%), ppots 1 of 3 (95 % 1% to 91%), mirror 3 of 3 (95 % 29% to 100%)" in said
    assert "of the other runs alone" in said


def test_the_share_has_the_exact_interval():
    for count, n in ((0, 3), (1, 3), (7, 20), (20, 20)):
        wanted = stats.binomtest(count, n).proportion_ci(method="exact")
        assert share_interval(count, n) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("metrics", [{}, None, {"accuracy": None}, {"accuracy": {}}, {"accuracy": {"value": None}}])
def test_a_missing_value_is_no_value_and_never_raises(metrics):
    odd = [{"method": "ppots", "seed": 5, "metrics": metrics}]
    held = runs("standard", "accuracy", {0: 0.5, 5: 0.6}) + runs("ppots", "accuracy", {0: 0.9, 1: math.nan})
    summary = summarise(held + odd, ["standard"])
    assert entry(summary, "ppots")["n"] == 1
    assert values_of(held + odd, "ppots", "accuracy") == {0: 0.9}
    assert statements(held + odd, summary) == []
    assert summarise(odd, ["standard"]) == []


@pytest.fixture
def mirror_of_seed_1_diverges(monkeypatch):
    real = StepWatch.before_step

    def before_step(self):
        real(self)
        if (self.trainer.method.name, self.trainer.noise_seed, self.trainer.state.global_step) == ("mirror", 1, 1):
            raise Diverged("the loss was not finite", 2)

    monkeypatch.setattr(StepWatch, "before_step", before_step)


def test_the_others_go_on_and_the_results_show_it(tmp_path, mirror_of_seed_1_diverges, monkeypatch):
    said: list[str] = []
    results = run_experiment(settings(tmp_path), said.append)
    assert results["status"] == {"finished": 4, "planned": 4, "diverged": 1}
    assert "mirror, seed 1: diverged at step 2: the loss was not finite" in said
    (run,) = [r for r in results["runs"] if r["status"] == "diverged"]
    assert (run["method"], run["seed"], run["metrics"], run["diverged"]["step"]) == ("mirror", 1, {}, 2)
    assert entry(results["summary"], "mirror", "validation_nll")["n_diverged"] == 1
    assert results["statements"][0].startswith("Runs that diverged: standard 0 of 2")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert "diverged" in metrics_table(stored, "validation_nll").text()
    assert "2 (1 diverged)" in cost_table(stored).text()
    assert "1, diverged at 2" in runs_table(stored).text()
    page = write_report(tmp_path).read_text()
    assert "Runs that diverged: standard 0 of 2" in page
    assert "1, diverged at 2" in page
    shown = State.of(experiment_run_of(tmp_path, "mirror", 1))
    assert (shown.kind, cells(shown)[1]) == ("diverged", "diverged: at step 2: the loss was not finite")
    monkeypatch.setattr(experiment_run, "train", lambda *_, **__: pytest.fail("a diverged run is finished"))
    assert run_experiment(settings(tmp_path), quiet)["runs"] == results["runs"]


def experiment_run_of(out, method: str, seed: int):
    folder = experiment_run.run_folder(out, method, seed)
    return settings(out).base.model_copy(update={"method": method, "seed": seed, "out": str(folder)})


def test_an_experiment_of_which_every_run_diverges_ends_and_says_so(tmp_path):
    recipe = tmp_path / "wild.yaml"
    wild = BASE | {"trainer": {"learning_rate": 1e30, "max_grad_norm": 0.0}}
    tree = {"base": wild, "methods": ["standard", "mirror"], "seeds": [1, 2], "out": "all"}
    recipe.write_text(json.dumps(tree).replace("1e+30", "1.0e+30"))
    result = in_process("experiment", "wild.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Runs that diverged: standard 2 of 2 (95 % 16% to 100%), mirror 2 of 2" in result.stdout
    stored = json.loads((tmp_path / "all" / "results.json").read_text())
    assert stored["status"] == {"finished": 4, "planned": 4, "diverged": 4}
    assert stored["summary"] == []
    assert in_process("report", "all", cwd=tmp_path).returncode == 0
    assert "diverged at" in (tmp_path / "all" / "report.html").read_text()
