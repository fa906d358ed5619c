"""The paper's numbers are those of its table, and stand beside one's own on the same task only."""

from __future__ import annotations

from statistics import mean, stdev

import pytest

from stabledllm.config import load_recipe
from stabledllm.experiment.summary import summarise
from stabledllm.reports.published import published, published_table
from stabledllm.reports.tables import spread_table
from tests.fakes import results as made_up
from tests.reports.test_reports import page, put

# Mean and sd as published (OpenScience, GSM8K, HiTab), by method.
TABLE = {
    "ppots+mirror": ((52.53, 1.55), (60.53, 1.75), (67.10, 1.35)),
    "ppots": ((46.80, 1.27), (58.58, 1.55), (61.37, 3.05)),
    "mirror": ((46.38, 0.82), (53.70, 2.62), (64.48, 0.71)),
    "clipped": ((49.33, 1.50), (56.18, 1.96), (60.63, 1.66)),
    "standard": ((45.52, 1.69), (52.51, 1.64), (58.68, 5.07)),
}


@pytest.mark.parametrize("method", TABLE)
def test_means_and_sds_are_the_published_ones(method):
    for task, (centre, spread) in zip(("openscience", "gsm8k", "hitab"), TABLE[method], strict=True):
        values = published()["accuracy"][task][method]
        assert mean(values) == pytest.approx(centre, abs=0.0051)
        assert stdev(values) == pytest.approx(spread, abs=0.0051)


@pytest.mark.parametrize("task", ["gsm8k", "hitab", "openscience"])
def test_the_recipes_run_the_papers_methods_and_seeds(task):
    recipe = load_recipe(f"table1/{task}")
    assert set(recipe.methods) == set(published()["accuracy"][task])
    assert recipe.seeds == published()["seeds"]


def test_the_report_shows_both(tmp_path):
    data = made_up.results(["standard", "ppots"], 3)
    data["config"] = {"base": {"model": "mine", "data": {"train": "gsm8k:here/train.jsonl"}}}
    table = published_table(data)
    row = next(row for row in table.rows if row[0] == "ppots")
    own = [r["metrics"]["accuracy"]["value"] for r in data["runs"] if r["method"] == "ppots"]
    assert row[1:] == ("58.58", "1.55", f"{100 * mean(own):.2f}", f"{100 * stdev(own):.2f}", "3")
    assert next(row for row in table.rows if row[0] == "clipped")[3:] == ("–", "–", "0")
    put(tmp_path, "results.json", data)
    assert "beside the paper" in page(tmp_path)
    data["config"]["base"]["data"]["train"] = "synthetic:hard"
    assert published_table(data) is None


CLIP = {"ppots+mirror": 34.59, "standard": 31.36, "ppots": 31.65, "mirror": 34.07}


def test_table_2_stands_beside_clip_scores():
    assert {m: round(mean(v), 2) for m, v in published()["clip_score"]["text-to-image-2m"].items()} == CLIP
    assert set(load_recipe("table2/text-to-image").methods) == set(CLIP)
    data = made_up.results(["standard", "mirror"], 3)
    for i, run in enumerate(data["runs"]):
        run["metrics"]["clip_score"] = {"value": 30.0 + i, "stderr": 0.5, "n": 8, "unit": "CLIP score"}
    data["summary"] = summarise(data["runs"], ["standard"])
    data["config"] = {"base": {"model": "mine", "data": {"train": "text-to-image-2m:here"}}}
    table = published_table(data)
    assert table.title.startswith("CLIP score on text-to-image-2m, beside")
    row = next(row for row in table.rows if row[0] == "mirror")
    own = [r["metrics"]["clip_score"]["value"] for r in data["runs"] if r["method"] == "mirror"]
    assert row[1:] == ("34.07", "0.71", f"{mean(own):.2f}", f"{stdev(own):.2f}", "3")


def test_the_report_shows_the_spread_with_its_intervals(tmp_path):
    runs = made_up.results(["standard", "ppots"], 4)
    data = runs | {"summary": summarise(runs["runs"], ["standard"])}
    table = spread_table(data, "accuracy")
    entry = next(e for e in data["summary"] if (e["method"], e["metric"]) == ("ppots", "accuracy"))
    row = next(row for row in table.rows if row[0] == "ppots")
    assert float(row[2]) == pytest.approx(entry["sd"], abs=1e-4)
    assert [float(x) for x in row[3].split(" to ")] == pytest.approx(
        [entry["sd_ci_low"], entry["sd_ci_high"]], abs=1e-4
    )
    assert float(row[4].split(",")[0]) == pytest.approx(entry["sd_versus_standard"]["value"], rel=1e-2)
    put(tmp_path, "results.json", data)
    assert "Accuracy: spread over seeds" in page(tmp_path)
    assert spread_table(made_up.results(["standard"], 1), "accuracy") is None
