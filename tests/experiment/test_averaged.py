"""Averages of the weights in an experiment: their statistics over seeds, by hand, and the tables of them."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
from scipy import stats

from stabledllm.config.settings import ExperimentSettings
from stabledllm.experiment.averaged import summarise_averages
from stabledllm.experiment.results import over_rates
from stabledllm.experiment.run import run_experiment
from stabledllm.experiment.spread import sd_ratio
from stabledllm.reports.averages import average_tables
from stabledllm.reports.html import write_report
from stabledllm.reports.printed import experiment_text, metric_lines
from tests.fakes import results as made_up
from tests.fakes.results import est, put
from tests.fakes.study import BASE, quiet

LAST = {"standard": [0.50, 0.54, 0.46, 0.57], "mirror": [0.48, 0.49, 0.45, 0.50]}
AVERAGED = {"standard": [0.47, 0.49, 0.46, 0.49], "mirror": [0.46, 0.47, 0.45, 0.47]}


def runs() -> list[dict]:
    return [
        {
            "method": method,
            "seed": seed,
            "metrics": {"validation_nll": est(last, 0.01)},
            "averages": {"ema-0.9": {"metrics": {"validation_nll": est(averaged, 0.01)}}},
        }
        for method in LAST
        for seed, (last, averaged) in enumerate(zip(LAST[method], AVERAGED[method], strict=True))
    ]


@pytest.mark.parametrize("method", LAST)
def test_an_average_is_compared_with_the_last_weights_of_the_same_runs(method):
    (entry,) = [e for e in summarise_averages(runs()) if e["method"] == method]
    assert (entry["average"], entry["metric"], entry["n"]) == ("ema-0.9", "validation_nll", 4)
    assert entry["mean"] == pytest.approx(mean(AVERAGED[method]))
    assert entry["sd"] == pytest.approx(stdev(AVERAGED[method]))
    test = stats.ttest_rel(AVERAGED[method], LAST[method])
    versus = entry["versus_last"]
    assert versus["difference"] == pytest.approx(mean(AVERAGED[method]) - mean(LAST[method]))
    assert versus["p_value"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (versus["ci_low"], versus["ci_high"]) == pytest.approx((interval.low, interval.high))
    spread = sd_ratio(dict(enumerate(AVERAGED[method])), dict(enumerate(LAST[method])))
    assert entry["sd_versus_last"] == spread
    assert spread["value"] == pytest.approx(stdev(AVERAGED[method]) / stdev(LAST[method]))


def test_the_same_average_of_two_methods_is_compared_and_p_is_corrected():
    standard, mirror = summarise_averages(runs())
    assert standard["versus_standard"] is None
    assert mirror["versus_standard"]["difference"] == pytest.approx(
        mean(AVERAGED["mirror"]) - mean(AVERAGED["standard"])
    )
    ps = sorted(entry["versus_last"]["p_value"] for entry in (standard, mirror))
    assert sorted(entry["versus_last"]["p_holm"] for entry in (standard, mirror)) == pytest.approx(
        sorted([2 * ps[0], max(2 * ps[0], ps[1])])
    )


def test_runs_without_averages_have_no_entries_and_those_without_one_are_left_out():
    plain = [{key: value for key, value in run.items() if key != "averages"} for run in runs()]
    assert summarise_averages(plain) == []
    assert summarise_averages(plain[:1] + runs()[1:])[0]["n"] == 3


def test_over_learning_rates_an_average_is_compared_within_each_rate():
    """The runs of the second rate end 1 higher, which no difference may contain."""
    grid = [moved(run, 0.001, 0.0) for run in runs()] + [moved(run, 0.002, 1.0) for run in runs()]
    settings = ExperimentSettings(methods=list(LAST), seeds=[0, 1, 2, 3], learning_rates=[0.001, 0.002])
    results = over_rates(grid, settings)
    alone = summarise_averages(runs())
    assert [(e["learning_rate"], e["method"]) for e in results["averages"]] == [
        (rate, method) for rate in (0.001, 0.002) for method in LAST
    ]
    for entry, same in zip(results["averages"], alone * 2, strict=True):
        assert entry["n"] == 4
        assert entry["mean"] == pytest.approx(same["mean"] + (entry["learning_rate"] == 0.002))
        assert entry["versus_last"] == pytest.approx(same["versus_last"])
    (table,) = average_tables(results)
    assert [row[0] for row in table.rows][1:3] == [
        "mirror, ema-0.9, learning rate 0.001",
        "standard, ema-0.9, learning rate 0.002",
    ]
    plain = [{key: value for key, value in run.items() if key != "averages"} for run in grid]
    assert "averages" not in over_rates(plain, settings)


def moved(run: dict, rate: float, by: float) -> dict:
    last, averaged = (run["metrics"]["validation_nll"], run["averages"]["ema-0.9"]["metrics"]["validation_nll"])
    out = run | {"learning_rate": rate, "outlier_steps": 0}
    out["metrics"] = {"validation_nll": last | {"value": last["value"] + by}}
    out["averages"] = {"ema-0.9": {"metrics": {"validation_nll": averaged | {"value": averaged["value"] + by}}}}
    return out


@pytest.mark.parametrize(("varied", "stored"), [("learning_rates", "runs"), ("standard_at", "reference_runs")])
def test_runs_of_a_grid_and_of_other_budgets_keep_averages(tmp_path, varied, stored):
    value = {"learning_rates": [0.002, 0.004], "standard_at": [2.0]}[varied]
    data = {"train": "synthetic:easy", "train_rows": 24, "validation_rows": 6}
    base = BASE | {"data": data, "untuned": False, "average": {"ema": [0.5]}}
    tree = {"base": base, "methods": ["standard"], "seeds": [1], "out": str(tmp_path), varied: value}
    results = run_experiment(ExperimentSettings.model_validate(tree), quiet)
    assert results["status"] == {"finished": 2, "planned": 2}
    assert all(set(run["averages"]) == {"ema-0.5"} for run in results[stored])
    (folder,) = tmp_path.glob({"learning_rates": "runs/*/lr-0.004/seed-1", "standard_at": "runs/standard@2x/*"}[varied])
    assert (folder / "model-ema-0.5").is_dir()
    compared = [entry.get("learning_rate") for entry in results["averages"] if entry["metric"] == "validation_nll"]
    assert compared == (value if varied == "learning_rates" else [None]), "of the methods, at every rate"
    assert "averages of the weights" in write_report(tmp_path).read_text(encoding="utf-8")


def test_spreads_that_move_together_have_an_interval_though_their_correlation_is_rounded_above_1():
    values = {0: 0.1, 1: 0.2, 2: 0.7}
    ratio = sd_ratio({seed: 3 * value for seed, value in values.items()}, values)
    assert (ratio["ci_low"], ratio["ci_high"]) == pytest.approx((3.0, 3.0), rel=1e-6)


def test_the_report_and_the_printed_text_show_them(tmp_path):
    data = made_up.results(["standard", "mirror"], 4) | {"averages": summarise_averages(runs())}
    put(tmp_path, "results.json", data)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "averages of the weights" in page
    assert "MIRROR, ema-0.9" in page
    (table,) = average_tables(data)
    assert table.rows[0][:3] == ("standard, ema-0.9", "0.4775", "-0.0400, -0.0936 to 0.0136")
    assert any("averages of the weights" in text for text in experiment_text(data))
    assert average_tables(made_up.results(["standard"], 1)) == []
    record = {"metrics": {"accuracy": 0.5}, "averages": runs()[0]["averages"]}
    assert list(metric_lines(record)) == ["accuracy 0.5", "validation_nll of ema-0.9 0.47 ± 0.01"]
