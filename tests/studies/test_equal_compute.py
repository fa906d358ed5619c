"""The study's recipes are in order, its statistics right, and its page holds what results.json holds."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from scipy import stats

from stabledllm.config import load_recipe
from stabledllm.experiment.budget import rows_per_step
from stabledllm.noise.methods import Method
from tests.cli.runner import ROOT

FOLDER = ROOT / "studies" / "equal_compute"
sys.path.insert(0, str(FOLDER))

import analysis  # noqa: E402
import page  # noqa: E402
import study  # noqa: E402


@pytest.mark.parametrize("name", study.EXPERIMENTS)
def test_every_experiment_is_a_valid_recipe(name):
    recipe, overrides, seeds = study.EXPERIMENTS[name]
    settings = load_recipe(str(FOLDER / "recipes" / f"{recipe}.yaml"), overrides)
    for name in settings.methods:
        assert settings.base.batch % rows_per_step(Method.parse(name), settings) == 0
    assert seeds >= 3
    assert len(settings.seeds) >= seeds


def test_what_is_measured_is_unbiased_and_has_a_fixed_density():
    for name in study.MEASURED:
        method = Method.parse(name)
        assert method.unbiased
        assert not method.adaptive
    assert len(set(study.MEASURED)) == len(study.MEASURED)


def runs(table: dict[str, list[float]]) -> list[dict]:
    return [
        {"method": m, "seed": s, "metrics": {k: {"value": v} for k in analysis.METRICS}}
        for m, values in table.items()
        for s, v in enumerate(values)
    ]


def test_differences_are_paired_by_seed():
    table = {"standard": [1.0, 2.0, 3.0, 4.0], "strats": [0.5, 1.7, 2.4, 3.6]}
    found = analysis.versus(runs(table), "strats", "standard", "validation_nll")
    test = stats.ttest_rel(table["strats"], table["standard"])
    assert found["difference"] == pytest.approx(-0.45)
    assert found["p_value"] == pytest.approx(test.pvalue)
    assert found["n"] == 4
    first = analysis.table_rows(runs(table))[0]
    assert first["method"] == "strats", "the least NLL first"


def test_rank_correlation_is_spearmans_and_its_interval_says_how_little_a_few_methods_tell():
    rng = np.random.default_rng(0)
    noise = {f"m{i}": float(i) for i in range(8)}
    clear = {m: list(level + 0.1 * rng.normal(size=6)) for m, level in noise.items()}
    found = analysis.rank_correlation(noise, runs(clear))
    assert found["value"] == pytest.approx(1.0)
    assert found["ci_low"] > 0.8
    nothing = {m: list(rng.normal(size=6)) for m in noise}
    found = analysis.rank_correlation(noise, runs(nothing))
    means = [np.mean(nothing[m]) for m in noise]
    assert found["value"] == pytest.approx(stats.spearmanr(list(noise.values()), means).statistic)
    assert found["ci_low"] < 0 < found["ci_high"]
    assert analysis.rank_correlation({"m0": 1.0}, runs(clear)) is None


def test_tables_stand_between_their_marks():
    text = "before\n<!-- tiny -->\nold\n<!-- end -->\nafter <!-- small -->\n<!-- end -->"
    assert page.filled(text, {"tiny": "new"}) == (
        "before\n<!-- tiny -->\n```\nnew\n```\n<!-- end -->\nafter <!-- small -->\n<!-- end -->"
    )


def test_compute_saved_is_read_off_standards_other_budgets(tmp_path, monkeypatch):
    """From run.json files alone, beside which Standard's other budgets stay out of every other table."""
    monkeypatch.setattr(page, "OUT", tmp_path)
    for folder, nll, forwards in (
        ("standard", 0.11, 4800),
        ("standard@0.75x", 0.12, 3600),
        ("standard@1.5x", 0.095, 7200),
    ):
        for seed in (1, 2, 3):
            metrics = {"validation_nll": {"value": nll + 1e-4 * ((seed * forwards) % 7), "stderr": 0.01}}
            spent = {"forward_passes": forwards, "probe_forward_passes": 0, "steps": forwards // 16, "seconds": 9.0}
            record = {"schema": "stabledllm/run/1", "method": folder.partition("@")[0], "seed": seed}
            path = tmp_path / "compute_tiny" / "runs" / folder / f"seed-{seed}" / "run.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(record | {"metrics": metrics} | spent))
    spent = {"forward_passes": 4800, "probe_forward_passes": 0, "steps": 300, "seconds": 9.0}
    before = runs({"standard": [9.0, 0.111, 0.111, 0.1125], study.ADAPTIVE: [9.0, 0.104, 0.1041, 0.1042]})
    stored = [{"metrics": {"validation_nll": run["metrics"]["validation_nll"]}} | spent for run in before]
    stored = [run | {key: one[key] for key in ("method", "seed")} for run, one in zip(stored, before, strict=True)]
    new = page.runs_of("compute_tiny")
    plain = {run["seed"]: run["metrics"]["validation_nll"]["value"] for run in new if run["method"] == "standard"}
    saving = page.saving_of(new, stored)
    assert {run["method"] for run in saving["reference_runs"]} == {"standard@0.75x", "standard@1.5x"}
    assert {run["method"] for run in saving["runs"]} == {"standard", study.ADAPTIVE}
    assert {run["seed"] for run in saving["runs"]} == {1, 2, 3}, "the seeds of the curve"
    assert {run["seed"]: run["metrics"]["validation_nll"]["value"] for run in saving["runs"][:3]} == plain
    assert saving["again"]["difference"] == pytest.approx(sum(plain.values()) / 3 - 0.1115)
    text = page.compute_block({"tiny": saving})
    assert f"{study.ADAPTIVE} 0." in text
    assert "Shipped model, 0.92 M parameters" in text
    one = {"difference": 0.001, "ci_low": None, "ci_high": None}
    assert page.compute_block({"tiny": saving | {"again": one}}).endswith(": +0.0010.")
    assert page.saving_of(page.runs_of("compute_small")) is None
    assert page.compute_block({}) == page.NOT_MEASURED


def test_the_page_holds_the_compute_saved_that_results_hold():
    stored = json.loads((FOLDER / "results.json").read_text(encoding="utf-8")).get("compute_saved", {})
    assert f"<!-- compute_saved -->\n```\n{page.compute_block(stored)}\n```" in (FOLDER / "README.md").read_text()


def test_the_runs_of_compute_saved_are_a_valid_experiment():
    for name, methods in study.SAVING.items():
        overrides = [f"methods=[{','.join(methods)}]", study.BUDGETS]
        settings = load_recipe(str(FOLDER / "recipes" / f"{name}.yaml"), overrides)
        longest = max(settings.standard_at) * settings.base.steps * settings.base.batch
        assert longest <= settings.base.data.train_rows, "every row at most once"
        assert len(settings.seeds) >= study.SAVING_SEEDS
