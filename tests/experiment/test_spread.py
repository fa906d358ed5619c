"""Intervals of a standard deviation and of the ratio of two, by simulation and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stabledllm.experiment.spread import sd_interval, sd_ratio
from stabledllm.experiment.summary import summarise


def test_sd_interval_is_chi_squares():
    values = [1.0, 4.0, 2.0, 7.0, 3.0]
    low, high = sd_interval(values)
    variance = np.var(values, ddof=1)
    assert low == pytest.approx((4 * variance / stats.chi2.isf(0.025, 4)) ** 0.5)
    assert high == pytest.approx((4 * variance / stats.chi2.isf(0.975, 4)) ** 0.5)
    assert sd_interval([1.0]) == (None, None)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_ratio_covers_as_often_as_it_says(correlation):
    rng = np.random.default_rng(3)
    truth, hits, trials = 0.6, 0, 2000
    for _ in range(trials):
        a, b = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 12).T
        found = sd_ratio(dict(enumerate(truth * a)), dict(enumerate(b)))
        hits += found["ci_low"] <= truth <= found["ci_high"]
    # Exact coverage: 5 standard deviations of a binomial.
    assert abs(hits / trials - 0.95) < 5 * (0.95 * 0.05 / trials) ** 0.5


def test_ratio_agrees_with_the_paired_test_of_equal_variances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=15) * 0.4, rng.normal(size=15)
    found = sd_ratio(dict(enumerate(a)), dict(enumerate(b)))
    p_value = stats.pearsonr(a + b, a - b).pvalue  # Pitman-Morgan
    assert (found["ci_high"] < 1) == (p_value < 0.05)
    assert found["value"] == pytest.approx(np.std(a, ddof=1) / np.std(b, ddof=1))


def test_too_few_seeds_or_no_spread_say_nothing():
    assert sd_ratio({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) is None
    assert sd_ratio({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: 2.0, 2: 4.0}) is None
    runs = [
        {"method": m, "seed": s, "metrics": {"accuracy": {"value": scale * s}}}
        for m, scale in (("standard", 1.0), ("ppots", 0.5))
        for s in range(4)
    ]
    by_method = {e["method"]: e for e in summarise(runs, ["standard"])}
    assert by_method["standard"]["sd_versus_standard"] is None
    assert by_method["ppots"]["sd_versus_standard"]["value"] == pytest.approx(0.5)
