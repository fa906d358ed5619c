"""Statistics over seeds, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from stabledllm.experiment.summary import paired, summarise, t_interval


def runs(method: str, metric: str, values: dict[int, float]) -> list[dict]:
    return [{"method": method, "seed": s, "metrics": {metric: {"value": v}}} for s, v in values.items()]


def entry(summary: list[dict], method: str, metric: str = "accuracy") -> dict:
    (found,) = [e for e in summary if e["method"] == method and e["metric"] == metric]
    return found


def test_mean_sd_and_student_interval_by_hand():
    found = entry(summarise(runs("standard", "accuracy", {0: 1.0, 1: 2.0, 2: 6.0}), ["standard"]), "standard")
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(3.0)
    assert found["sd"] == pytest.approx(7.0**0.5)
    # t(0.975, 2) = 4.302653; half width 4.302653 * sqrt(7 / 3) = 6.572411.
    assert found["ci_low"] == pytest.approx(3 - 6.572411, abs=1e-5)
    assert found["ci_high"] == pytest.approx(3 + 6.572411, abs=1e-5)
    assert found["versus_standard"] is None
    assert found["worst_beats_best_baseline"] is None


def test_paired_difference_matches_scipy():
    standard = {0: 0.50, 1: 0.62, 2: 0.41, 3: 0.55}
    mine = {3: 0.60, 0: 0.58, 1: 0.63, 2: 0.52}
    summary = summarise(runs("standard", "accuracy", standard) + runs("ppots", "accuracy", mine), ["standard"])
    versus = entry(summary, "ppots")["versus_standard"]
    test = stats.ttest_rel([mine[s] for s in range(4)], [standard[s] for s in range(4)])
    interval = test.confidence_interval(0.95)
    assert versus["difference"] == pytest.approx(0.0625)
    assert versus["p_value"] == pytest.approx(test.pvalue)
    assert (versus["ci_low"], versus["ci_high"]) == pytest.approx((interval.low, interval.high))


def test_p_value_is_two_sided_and_handles_constant_differences():
    low, high = {0: 1.0, 1: 2.5, 2: 3.0}, {0: 1.5, 1: 3.5, 2: 3.25}
    assert paired(low, high)["p_value"] == pytest.approx(paired(high, low)["p_value"])
    assert paired(low, low) == {"difference": 0.0, "ci_low": None, "ci_high": None, "p_value": 1.0}
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})["p_value"] is None, "no spread is known"
    assert paired({0: 0.32, 1: 0.42}, {0: 0.30, 1: 0.40})["p_value"] is None, "and rounding is none"


@pytest.mark.parametrize(
    ("metric", "mine", "expected"),
    [
        ("accuracy", {0: 0.71, 1: 0.80}, True),
        ("accuracy", {0: 0.69, 1: 0.99}, False),
        ("accuracy", {0: 0.70, 1: 0.99}, False),
        ("accuracy", {0: 0.10, 1: 0.20}, False),
        ("validation_nll", {0: 0.39, 1: 0.10}, True),
        ("validation_nll", {0: 0.41, 1: 0.10}, False),
        ("validation_nll", {0: 0.71, 1: 0.80}, False),
    ],
)
def test_worst_beats_best_baseline(metric, mine, expected):
    """The baselines' best is 0.70 (accuracy) or 0.40 (NLL), and it is not Standard's."""
    every = runs("standard", metric, {0: 0.5, 1: 0.6}) + runs("clipped", metric, {0: 0.4, 1: 0.7})
    summary = summarise(every + runs("ppots", metric, mine), ["standard", "clipped"])
    assert entry(summary, "ppots", metric)["worst_beats_best_baseline"] is expected
    assert entry(summary, "clipped", metric)["worst_beats_best_baseline"] is None


def test_one_seed_says_nothing():
    summary = summarise(runs("standard", "accuracy", {0: 0.5}) + runs("ppots", "accuracy", {0: 0.6}), ["standard"])
    found = entry(summary, "ppots")
    assert found["mean"] == 0.6
    assert found["sd"] is found["ci_low"] is found["ci_high"] is None
    versus = found["versus_standard"]
    assert versus["difference"] == pytest.approx(0.1)
    assert versus["ci_low"] is versus["ci_high"] is versus["p_value"] is None
    assert t_interval([]) == (None, None)


def test_only_seeds_that_both_finished_are_paired():
    standard, mine = {0: 1.0, 1: 2.0, 2: 9.0}, {1: 3.0, 0: 1.5, 5: 100.0}
    summary = summarise(runs("standard", "accuracy", standard) + runs("ppots", "accuracy", mine), ["standard"])
    found = entry(summary, "ppots")
    assert found["n"] == 3
    assert found["versus_standard"]["difference"] == pytest.approx(0.75)
    assert found["versus_standard"]["p_value"] == pytest.approx(stats.ttest_rel([1.5, 3.0], [1.0, 2.0]).pvalue)
    assert paired({7: 1.0}, standard) is None


def test_missing_metrics_and_methods():
    every = runs("standard", "accuracy", {0: 0.5, 1: 0.6}) + runs("ppots", "validation_nll", {0: 1.0, 1: 2.0})
    summary = summarise(every, ["standard", "clipped"])
    assert [(e["method"], e["metric"]) for e in summary] == [
        (method, metric) for method in ("standard", "ppots") for metric in ("accuracy", "validation_nll")
    ]
    absent = entry(summary, "ppots")
    assert absent["n"] == 0
    assert absent["mean"] is absent["sd"] is absent["versus_standard"] is absent["worst_beats_best_baseline"] is None
    alone = entry(summary, "ppots", "validation_nll")
    assert alone["mean"] == 1.5
    assert alone["versus_standard"] is alone["worst_beats_best_baseline"] is None
    without = summarise(runs("ppots", "accuracy", {0: 0.9}), ["standard"])
    assert entry(without, "ppots")["worst_beats_best_baseline"] is None
