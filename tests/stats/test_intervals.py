"""Intervals of next to nothing: no overflow, and none where one draw decides everything."""

from __future__ import annotations

import math

import pytest

from stabledllm.reports import numbers
from stabledllm.reports.summary import _shares
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import UNKNOWN, of_sum, of_variance
from stabledllm.variance.comparison import _text


@pytest.mark.parametrize("stderr", [2.1, 1e6, 1e200])
def test_a_variance_that_one_draw_decides_has_no_interval(stderr):
    assert all(map(math.isnan, of_variance(1.0, stderr, 3)))


def test_a_variance_of_few_draws_has_a_wide_one():
    low, high = of_variance(1.0, 1.9, 3)
    assert 0 < low < 0.3
    assert 100 < high < 1e8


def test_sums_of_enormous_intervals_do_not_overflow():
    low, high = of_sum([(1.0, (0.5, 1e200)), (2.0, (1.0, 1e250))])
    assert (low, high) == (pytest.approx(3 - math.hypot(0.5, 1.0)), pytest.approx(1e250))


def test_an_unknown_interval_is_stored_as_no_error():
    """A reader makes value ± 1.96 errors of what has no ends of its own."""
    stored = Estimate(value=2.0, stderr=0.5, n=9, ends=UNKNOWN).as_dict()
    assert stored["stderr"] is None
    assert "ci_low" not in stored
    assert numbers.estimate(stored) == "2.00 ± ?"
    assert str(Estimate(value=2.0, stderr=0.5, n=9, ends=UNKNOWN)) == "2 (n=9)"
    assert Estimate(value=2.0, stderr=0.5, n=9, ends=(1.0, 4.0)).as_dict()["stderr"] == 0.5


def test_an_error_of_an_unknown_interval_is_not_printed_either():
    assert _text(Estimate(value=2.0, stderr=0.5, n=9)) == "2 ± 0.5"
    assert _text(Estimate(value=2.0, stderr=0.5, n=9, ends=UNKNOWN)) == "2"
    assert numbers.with_error({"value": 2.0, "stderr": None}) == "2.00 ± ?"
    assert numbers.estimate({"value": 2.0}) == "2.00", "of which no error was asked"


def test_ends_are_stored_where_the_error_is_not_known():
    stored = Estimate(value=2.0, stderr=math.nan, n=2, ends=(1.0, 4.0)).as_dict()
    assert (stored["stderr"], stored["ci_low"], stored["ci_high"]) == (None, 1.0, 4.0)


def test_a_component_of_unknown_error_is_not_told_apart_from_zero():
    parts = {name: Estimate(value=3.0, stderr=0.1, n=90).as_dict() for name in ("mask_pattern", "mask_rate", "total")}
    parts["data"] = Estimate(value=0.3, stderr=0.9, n=90, ends=UNKNOWN).as_dict()
    told = " ".join(_shares(parts, "loss"))
    assert "Not told apart from zero: the data (C)." in told
    assert "0.300 ± ?" in told
