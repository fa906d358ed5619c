"""An experiment over a grid of learning rates: which runs it makes, where, and what its results say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stabledllm.config.settings import ExperimentSettings
from stabledllm.errors import Diverged, Mistakes, UserError
from stabledllm.experiment import run as experiment_run
from stabledllm.experiment.at_once import in_words, load_checked
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.checks import check_experiment
from stabledllm.experiment.grid import NO_GRID, Cell, run_folder, title_of
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.quick import quickened
from stabledllm.experiment.rate_checks import check_rates
from stabledllm.experiment.results import over_rates
from stabledllm.experiment.run import run_experiment
from stabledllm.training.diverged import StepWatch
from tests.cli.runner import in_process
from tests.fakes.rates import RATES, curve, losses
from tests.fakes.rates import runs_of as made_up
from tests.fakes.study import BASE, quiet


def grid(out="runs/none", rates=RATES, **keys) -> ExperimentSettings:
    tree = {
        "base": BASE | {"untuned": False},
        "methods": ["standard", "mirror"],
        "seeds": [1, 2],
        "out": str(out),
        "learning_rates": rates,
    }
    return ExperimentSettings.model_validate(tree | keys)


def of_curve(record: dict, method: str, norm: float | None = None) -> dict:
    (found,) = [c for c in record["curves"] if (c["method"], c.get("max_grad_norm")) == (method, norm)]
    return found


def test_every_rate_norm_and_method_is_a_run_with_a_folder_of_its_own(tmp_path):
    settings = grid(tmp_path, [0.002, 1e-5], max_grad_norms=[1.0, 0.0])
    runs = runs_of(settings)
    assert [(run.name, *run.cell.values.values()) for run in runs[:3]] == [
        ("standard", 0.002, 1.0),
        ("mirror", 0.002, 1.0),
        ("standard", 0.002, 0.0),
    ]
    trainers = [run.settings.trainer for run in runs]
    assert [(t["learning_rate"], t["max_grad_norm"]) for t in trainers[::2]] == [
        (0.002, 1.0), (0.002, 0.0), (1e-5, 1.0), (1e-5, 0.0)
    ]  # fmt: skip
    folders = {run_folder(tmp_path, run.name, 1, run.cell) for run in runs}
    assert len(folders) == len(runs) == 8
    assert tmp_path / "runs" / "standard" / "lr-1e-05_clip-0" / "seed-1" in folders
    assert in_words(settings) == "an experiment of 2 methods x 2 learning rates x 2 clipping norms x 2 seeds with tiny"
    assert "trainer" not in settings.base.model_fields_set, "the base stays as it is"


@pytest.mark.parametrize("cell", [NO_GRID, Cell(1e-05), Cell(0.0123456789, 0.5), Cell(2.0, 0.0)], ids=repr)
def test_a_runs_folder_tells_its_place_in_the_grid(cell):
    folder = run_folder(Path("out"), "standard", 3, cell)
    run = grid().base.model_copy(update={"seed": 3, "out": str(folder)})
    assert title_of(run) == ", ".join(filter(None, ("standard", cell.words, "seed 3")))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"learning_rates": [1e-3, 0.001]}, r"'learning_rates': expected each one once, found 0.001 twice"),
        ({"learning_rates": [0.0]}, r"'learning_rates.0': expected a number greater than 0, found 0.0"),
        ({"learning_rates": [1e-3, -1e-3]}, r"'learning_rates.1': expected a number greater than 0, found -0.001"),
        ({"learning_rates": "[1e-3,inf]"}, r"'learning_rates': expected a finite number"),
        ({"learning_rates": 0.1}, r"'learning_rates': expected a list .* write learning_rates=\[0.1\]"),
        ({"max_grad_norms": [-1.0]}, r"'max_grad_norms.0': expected a number greater than or equal to 0"),
        ({"learning_rates": [], "max_grad_norms": [1, 0]}, r"'max_grad_norms': expected learning_rates beside it"),
        ({"base.objective.kind": "grpo"}, r"'learning_rates': expected an objective whose final loss compares them"),
        ({"standard_at": [1.0]}, r"^key 'standard_at': expected one of standard_at and learning_rates, since budgets"),
        ({"learning_rates": [], "max_grad_norms": [1.0], "standard_at": [2.0]}, r"^key .* standard_at and max_grad"),
        ({"base.trainer.learning_rate": 0.1}, r"'base.trainer.learning_rate': expected learning_rates alone"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_at_once(tmp_path, monkeypatch, keys, said):
    monkeypatch.chdir(tmp_path)
    recipe = {"base": BASE, "methods": ["standard"], "learning_rates": [0.001, 0.002], "out": "grid"}
    (tmp_path / "grid.yaml").write_text(json.dumps(recipe))
    with pytest.raises(Mistakes, match=said):
        load_checked("grid.yaml", [f"{key}={json.dumps(v) if isinstance(v, list) else v}" for key, v in keys.items()])
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("varied", [{"learning_rates": [1e-3, 2e-3]}, {"learning_rates": [], "max_grad_norms": [1.0]}])
def test_a_grid_beside_other_budgets_is_refused_before_anything_is_loaded_or_touched(tmp_path, varied):
    out = tmp_path / "new"
    with pytest.raises(UserError, match=f"expected one of standard_at and {list(varied)[-1]}"):
        check_experiment(grid(out, standard_at=[1.5], **varied), quiet)
    assert not out.exists()


def test_a_base_of_the_file_is_replaced_and_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"base": BASE | {"trainer": {"learning_rate": 0.5}}, "methods": ["standard"], "learning_rates": [0.001]}
    (tmp_path / "grid.yaml").write_text(json.dumps(recipe))
    (run,) = runs_of(load_checked("grid.yaml", ["base.trainer.max_grad_norm=0.5"]))
    assert run.settings.trainer == {"learning_rate": 0.001, "max_grad_norm": 0.5}


def test_rates_need_validation_rows():
    data = {"train": "jsonl:rows.jsonl", "validation_share": 0.0}
    with pytest.raises(UserError, match="'learning_rates': expected validation rows"):
        check_rates(grid(base=BASE | {"data": data}))
    check_rates(grid(base=BASE | {"data": data}, rates=[]))


def test_a_rehearsal_keeps_the_ends_of_the_grid():
    quick = quickened(grid(max_grad_norms=[1.0, 0.0]), [])
    assert (quick.learning_rates, quick.max_grad_norms) == ([0.0005, 0.008], [1.0])
    typed = quickened(grid(max_grad_norms=[1.0, 0.0]), ["learning_rates", "max_grad_norms"])
    assert (typed.learning_rates, typed.max_grad_norms) == (RATES, [1.0, 0.0])
    assert quickened(grid(rates=[]), []).learning_rates == []


@pytest.fixture
def mirror_diverges_at_the_high_rate(monkeypatch):
    real = StepWatch.before_step

    def before_step(self):
        real(self)
        high = self.trainer.args.learning_rate == 0.004
        if high and (self.trainer.method.name, self.trainer.noise_seed, self.trainer.state.global_step) == (
            "mirror",
            1,
            1,
        ):
            raise Diverged("the loss was not finite", 2)

    monkeypatch.setattr(StepWatch, "before_step", before_step)


@pytest.mark.slow
def test_a_grid_is_run_resumed_extended_and_reported(tmp_path, mirror_diverges_at_the_high_rate, monkeypatch):
    said: list[str] = []
    settings = grid(tmp_path, [0.004, 0.002])
    results = run_experiment(settings, said.append)
    assert results["status"] == {"finished": 8, "planned": 8, "diverged": 1}
    assert "mirror, learning rate 0.004, seed 1: diverged at step 2: the loss was not finite" in said
    places = [(run["method"], run["learning_rate"], run["seed"]) for run in results["runs"]]
    assert places == [(m, r, s) for r in (0.004, 0.002) for m in ("standard", "mirror") for s in (1, 2)]
    assert all(run["outlier_steps"] == 0 for run in results["runs"]), "the first ten steps are only counted"
    for run in results["runs"]:
        folder = run_folder(tmp_path, run["method"], run["seed"], Cell(run["learning_rate"]))
        record = json.loads((folder / "run.json").read_text())
        assert record["identity"]["trainer"]["learning_rate"] == run["learning_rate"]
    of_standard = {run["forward_passes"] for run in results["runs"] if run["method"] == "standard"}
    of_mirror = {
        run["forward_passes"] for run in results["runs"] if run["method"] == "mirror" and "diverged" not in run
    }
    assert of_standard == of_mirror, "the same forwards at every rate"
    assert rows_per_step(runs_of(settings)[1].method, settings) == 2
    record = results["rates"]
    assert record["learning_rates"] == [0.002, 0.004]
    mirror = of_curve(record, "mirror")
    assert [point["n_diverged"] for point in mirror["points"]] == [0, 1]
    assert mirror["range"]["high"] == {"value": 0.002, "is": "exact", "ci_low": None, "ci_high": None}
    (entry,) = [
        e for e in results["summary"]
        if (e["method"], e["metric"], e["learning_rate"]) == ("mirror", "validation_nll", 0.004)
    ]  # fmt: skip
    assert (entry["n"], entry["n_diverged"]) == (1, 1)

    def told(kind):
        return "\n".join(results[kind])

    assert "Runs that diverged: standard 0 of 4, mirror 1 of 4" in told("statements")
    assert "Ranges have an interval from 6 seeds on; some methods have 2" in told("statements")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["rates"] == record

    monkeypatch.setattr(experiment_run, "train", lambda *_, **__: pytest.fail("every run is finished"))
    fewer = run_experiment(grid(tmp_path, [0.002]), quiet)
    assert fewer["status"] == {"finished": 4, "planned": 4}
    assert "One learning rate shows no range" in "\n".join(fewer["statements"])
    assert run_experiment(settings, quiet)["runs"] == results["runs"], "a grid may be extended"
    with pytest.raises(UserError, match=r"expected varied=\['learning_rates'\] .* found varied=\[\]"):
        run_experiment(grid(tmp_path, []), quiet)
    with pytest.raises(UserError, match="expected varied"):
        run_experiment(grid(tmp_path, [0.002], max_grad_norms=[0.0]), quiet)

    assert in_process("report", str(tmp_path), cwd=tmp_path).returncode == 0
    page = (tmp_path / "report.html").read_text()
    assert "Learning rates within 2\u00a0% of the best" in page or "Learning rates within 2 % of the best" in page
    assert "Final loss over the learning rate" in page
    assert "No training loss was logged" not in page
    power = in_process("power", "--difference", "0.01", "--from", str(tmp_path), cwd=tmp_path)
    assert (power.returncode, "found a grid of them" in power.stderr) == (2, True)


def test_an_experiment_without_a_grid_says_nothing_of_rates(tmp_path):
    alone = grid(tmp_path, [], methods=["standard"], seeds=[1])
    results = run_experiment(alone, quiet)
    assert "rates" not in results
    assert {"learning_rate", "outlier_steps"}.isdisjoint(results["runs"][0])
    assert (tmp_path / "runs" / "standard" / "seed-1" / "run.json").is_file()
    plan = json.loads((tmp_path / "experiment.json").read_text())
    del plan["varied"], plan["settings"]["equal"]
    (tmp_path / "experiment.json").write_text(json.dumps(plan))
    assert run_experiment(alone, quiet)["runs"] == results["runs"], "one begun before there were grids"


@pytest.mark.long
@pytest.mark.processes
def test_two_jobs_make_the_runs_of_a_grid_that_one_makes(tmp_path):
    one, two = (grid(tmp_path / name, [0.002, 0.004], methods=["standard"], seeds=[1]) for name in ("one", "two"))
    first, second = run_experiment(one, quiet), run_experiment(two, quiet, jobs=2)
    assert second["status"] == {"finished": 2, "planned": 2}
    for mine, theirs in zip(first["runs"], second["runs"], strict=True):
        assert mine["learning_rate"] == theirs["learning_rate"]
        # Another number of threads adds up in another order.
        assert mine["metrics"]["validation_nll"]["value"] == pytest.approx(
            theirs["metrics"]["validation_nll"]["value"], rel=1e-4
        )
    assert first["runs"][0]["metrics"]["validation_nll"] != first["runs"][1]["metrics"]["validation_nll"]


NARROW, WIDE = curve(0.016), curve(0.0015, best=0.098)
METHODS = ["standard", "mirror"]


def results_of(narrow: np.ndarray, wide: np.ndarray, **keys) -> dict:
    runs = made_up("standard", narrow) + made_up("mirror", wide)
    return over_rates(runs, grid(seeds=list(range(1, len(narrow) + 1)), **keys))


def test_results_of_known_curves():
    results = results_of(*losses([NARROW, WIDE], 6, own=0.0005))
    standard, wide = (of_curve(results["rates"], method) for method in METHODS)
    assert (standard["seeds"], standard["versus_standard"]) == (6, None)
    assert (standard["best"]["learning_rate"], standard["best"]["is_at_end"]) == (0.002, False)
    versus = wide["versus_standard"]
    assert versus["ratio"]["value"] == pytest.approx(
        wide["range"]["factor"]["value"] / standard["range"]["factor"]["value"]
    )
    assert 1 < versus["ratio"]["ci_low"] < versus["ratio"]["value"] < versus["ratio"]["ci_high"]
    assert versus["best"]["ci_low"] < versus["best"]["difference"] < versus["best"]["ci_high"] < 0
    assert [point["outlier_steps"] for point in wide["points"]] == [0, 0, 0, 3.5, 3.5]
    assert results["advice"][0].startswith("By learning rate: mirror stays near its best over a range")
    assert "times as wide as Standard's" in results["advice"][0]
    assert "only the best one is within 2 %" in results["advice"][1]
    assert "(standard)" in results["advice"][1]
    swapped = results_of(*losses([WIDE, NARROW], 6, own=0.0005))
    assert swapped["advice"][0] == "By learning rate: no method's range is shown to be wider than Standard's."


def test_an_open_end_is_said():
    results = results_of(*losses([NARROW, curve(0.0004)], 6, own=0.0001))
    wide = of_curve(results["rates"], "mirror")
    assert wide["range"]["factor"]["is"] == "at least"
    assert wide["range"]["factor"]["ci_high"] is None
    assert wide["versus_standard"]["ratio"]["is"] == "at least"
    said = "\n".join(results["statements"])
    assert "from a learning rate of 0.0005 or lower to 0.008 or higher, a factor of at least 16 (at least 16)" in said
    other = results_of(*losses([curve(0.0004), NARROW], 6, own=0.0001))
    assert of_curve(other["rates"], "mirror")["versus_standard"]["ratio"]["is"] == "at most"
    both = results_of(*losses([curve(0.0004), curve(0.0004)], 6, own=0.0001))
    assert of_curve(both["rates"], "mirror")["versus_standard"]["ratio"]["value"] is None
    assert "neither is known to be the wider" in "\n".join(both["statements"])
    assert "no range is told from Standard's; that takes a grid" in both["advice"][0]


def test_a_best_rate_at_the_end_of_the_grid_is_told():
    falling = np.tile(np.linspace(0.2, 0.1, 5), (6, 1))
    results = results_of(falling, losses([WIDE], 6)[0])
    assert any(
        line.startswith("Widen learning_rates: the best rate of standard is at an end") for line in results["advice"]
    )


def test_a_method_of_which_all_runs_diverged():
    results = results_of(losses([NARROW], 6)[0], np.full((6, 5), np.inf))
    lost = of_curve(results["rates"], "mirror")
    assert (lost["best"], lost["range"], lost["versus_standard"]) == (None, None, None)
    assert [point["mean"] for point in lost["points"]] == [None] * 5
    said = "\n".join(results["statements"])
    assert "mirror: some run diverged at every learning rate, so that there is no range." in said
    assert "Runs that diverged: standard 0 of 30, mirror 30 of 30." in said
    other = results_of(np.full((6, 5), np.inf), losses([NARROW], 6)[0])
    assert of_curve(other["rates"], "mirror")["versus_standard"] is None


def test_runs_that_are_missing_count_in_no_range():
    """Seeds are compared that a method has at every rate; a grid in progress has points without a range."""
    whole, other = losses([NARROW, WIDE], 6)
    runs = made_up("standard", whole) + [
        r for r in made_up("mirror", other) if (r["seed"], r["learning_rate"]) != (2, 0.008)
    ]
    results = over_rates(runs, grid(seeds=[1, 2, 3, 4, 5, 6]))
    part = of_curve(results["rates"], "mirror")
    assert (part["seeds"], part["versus_standard"]["n"], part["points"][4]["n"]) == (5, 5, 5)
    begun = over_rates([r for r in runs if r["learning_rate"] < 0.002], grid(seeds=[1, 2]))
    assert [c["range"] for c in begun["rates"]["curves"]] == [None, None]
    assert begun["statements"] == begun["advice"] == []
    assert over_rates([], grid())["rates"]["curves"] == []


def test_each_way_of_clipping_is_compared_with_standard_under_the_same():
    one, other = losses([NARROW, WIDE], 6)
    runs = [
        run
        for norm in (1.0, 0.0)
        for m, nll in (("standard", one), ("mirror", other))
        for run in made_up(m, nll, norm=norm)
    ]
    results = over_rates(runs, grid(seeds=[1, 2, 3, 4, 5, 6], max_grad_norms=[1.0, 0.0]))
    assert (
        of_curve(results["rates"], "mirror", 1.0)["versus_standard"]
        == of_curve(results["rates"], "mirror", 0.0)["versus_standard"]
    )
    keys = {(e["method"], e["learning_rate"], e["max_grad_norm"]) for e in results["summary"]}
    assert len(keys) == len(results["summary"]) == 2 * 5 * 2
    assert any("mirror, unclipped: within" in line for line in results["statements"])


def test_preferences_are_compared_by_the_loss_of_held_out_pairs():
    runs = made_up("standard", losses([NARROW], 2)[0])
    for run in runs:
        run["metrics"] = {"preference_loss": run["metrics"].pop("validation_nll")}
    results = over_rates(runs, grid(base=BASE | {"objective": {"kind": "dpo"}}))
    assert results["rates"]["metric"] == "preference_loss"
    assert "its best loss of held-out pairs" in results["statements"][0]
