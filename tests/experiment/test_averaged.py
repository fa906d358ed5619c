"""Averages of the weights in an experiment: their statistics over seeds, by hand, and the tables of them."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
from scipy import stats

from stabledllm.experiment.averaged import summarise_averages
from stabledllm.experiment.spread import sd_ratio
from stabledllm.reports.averages import average_tables
from stabledllm.reports.html import write_report
from stabledllm.reports.printed import experiment_text, metric_lines
from tests.fakes import results as made_up
from tests.fakes.results import est, put

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
