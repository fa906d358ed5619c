"""The range of learning rates near a method's best, on curves of known range, and how often its interval holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stabledllm.experiment.rate_range import (
    LEAST_SEEDS,
    best_difference,
    ends_of,
    interval,
    mean_curves,
    range_intervals,
    ratio_interval,
    widest_range,
)
from tests.checks.moments import assert_covers
from tests.fakes.rates import RATES, curve, losses

GRID = np.array(RATES)
TRIALS = 300


def finely(x: np.ndarray, y: np.ndarray, within: float = 0.02) -> tuple[float, float]:
    """The widest range by looking at 200,001 places of the line, which knows nothing of crossings."""
    places = np.linspace(x[0], x[-1], 200_001)
    inside = np.interp(places, x, y) <= y.min() * (1 + within)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    begins, ends = edges[::2], edges[1::2] - 1
    widest = int((places[ends] - places[begins]).argmax())
    return places[begins[widest]], places[ends[widest]]


def test_the_ends_are_where_the_line_over_the_logarithm_meets_the_limit():
    found = widest_range(np.array([1e-3, 2e-3, 4e-3, 8e-3]), np.array([[1.04, 1.0, 1.01, 1.05]]))
    # Half of the way from 1.04 to 1.0, a quarter of that from 1.01 to 1.05.
    assert found.low == pytest.approx(2e-3 / 2**0.5)
    assert found.high == pytest.approx(4e-3 * 2**0.25)
    assert found.factor == pytest.approx(2**1.75)
    assert (found.open_below, found.open_above) == (False, False)


def test_any_curve_has_the_range_that_a_fine_look_finds():
    generator = np.random.default_rng(3)
    x = np.sort(generator.uniform(-9, -4, 7))
    curves = 0.1 + 0.006 * generator.random((40, 7))
    for y, *found in zip(curves, *ends_of(x, curves), strict=True):
        low, high = finely(x, y)
        assert found == pytest.approx([low, high], abs=3 * (x[-1] - x[0]) / 200_000)


def test_of_two_ranges_the_wider_is_taken():
    rates = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    found = widest_range(rates, np.array([[1.0, 9.0, 1.01, 1.01, 9.0]]))
    assert (found.low > 3, found.high > 8, found.open_below, found.open_above) == (True, True, False, False)


def test_a_range_ends_at_the_last_rate_at_which_every_run_ended():
    nll = np.array([[0.1, 0.1, 0.1], [0.1, 0.1, np.inf]])
    found = widest_range(np.array([1e-3, 2e-3, 4e-3]), nll)
    assert (found.low, found.high, found.open_below, found.open_above) == (1e-3, 2e-3, True, False)
    assert mean_curves(nll, np.array([[1.0, 0.0]]))[0, 2] == pytest.approx(0.1), "of the seed that ended alone"


def test_where_all_diverged_there_is_no_range_and_no_interval():
    nll = np.full((LEAST_SEEDS, 5), np.inf)
    assert widest_range(GRID, nll) is None
    assert range_intervals(GRID, nll) is None
    assert ratio_interval(GRID, nll, np.ones((LEAST_SEEDS, 5))) is None
    assert ratio_interval(GRID, np.ones((LEAST_SEEDS, 5)), nll) is None


def test_one_rate_is_a_range_of_no_width_that_is_open_to_both_sides():
    found = widest_range(np.array([1e-3]), np.ones((LEAST_SEEDS, 1)))
    assert (found.factor, found.open_below, found.open_above) == (1.0, True, True)
    assert range_intervals(np.array([1e-3]), np.ones((LEAST_SEEDS, 1)))["factor"] == (1.0, math.inf)


def test_few_seeds_have_no_interval():
    few = losses([curve(0.01)], LEAST_SEEDS - 1)[0]
    assert widest_range(GRID, few) is not None
    assert range_intervals(GRID, few) is None
    assert ratio_interval(GRID, few, few) is None
    assert "ci_low" not in best_difference(few, few + 0.01)
    assert widest_range(GRID, few[:1]) is not None, "one seed has a range"


def test_seeds_without_noise_have_intervals_without_width():
    steep, flat = (np.tile(curve(k), (LEAST_SEEDS, 1)) for k in (0.016, 0.004))
    one, other = widest_range(GRID, steep), widest_range(GRID, flat)
    ends = range_intervals(GRID, steep)
    assert ends["factor"] == pytest.approx((one.factor, one.factor))
    assert ends["low"] == pytest.approx((one.low, one.low))
    assert ratio_interval(GRID, flat, steep) == pytest.approx((other.factor / one.factor,) * 2)
    assert best_difference(steep, flat + 0.01) == pytest.approx(
        {"difference": -0.01, "ci_low": -0.01, "ci_high": -0.01}
    )


def test_a_range_that_ends_with_the_grid_is_known_on_one_side_only():
    """Over the inner three rates the flat method's range is open, and Standard's is not."""
    inner = GRID[1:4]
    flat, steep = (np.tile(curve(k), (LEAST_SEEDS, 1))[:, 1:4] for k in (0.0004, 0.02))
    assert range_intervals(inner, flat)["high"] == pytest.approx((inner[-1], math.inf))
    assert range_intervals(inner, flat)["low"] == pytest.approx((0.0, inner[0]))
    low, high = ratio_interval(inner, flat, steep)
    assert (low, high) == pytest.approx((4.0 / widest_range(inner, steep).factor, math.inf))
    low, high = ratio_interval(inner, steep, flat)
    assert (low, high) == pytest.approx((0.0, widest_range(inner, steep).factor / 4.0))
    assert ratio_interval(inner, flat, flat) == (0.0, math.inf), "nothing is known"


def test_methods_are_resampled_together():
    """A method whose runs are Standard's times 1.1 has the same range in every resample."""
    standard = losses([curve(0.012)], 7, own=0.003)[0]
    assert ratio_interval(GRID, 1.1 * standard, standard) == pytest.approx((1.0, 1.0))
    low, high = range_intervals(GRID, standard)["factor"]
    assert high > 1.2 * low


@pytest.mark.statistical
def test_the_interval_of_a_range_holds_it_about_as_often_as_it_says():
    """The same as the long test below for one case, of fewer trials."""
    assert_covers(covered(6, 0.002, trials=60)["factor"], 60, "factor over 6 seeds")


def test_the_interval_of_a_mean_is_about_students():
    values = np.random.default_rng(5).standard_normal(8)
    drawn = np.random.default_rng(6).multinomial(8, [1 / 8] * 8, size=200_000) / 8 @ values
    half = 2.3646 * values.std(ddof=1) / 8**0.5
    low, high = interval(drawn, drawn, 8)
    assert high - low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.long
@pytest.mark.statistical
@pytest.mark.parametrize(("seeds", "own"), [(6, 0.001), (6, 0.003), (12, 0.002)])
def test_intervals_hold_the_range_of_the_true_curve_as_often_as_they_say(seeds, own):
    for name, found in covered(seeds, own, TRIALS).items():
        assert_covers(found, TRIALS, f"{name} over {seeds} seeds")


def covered(seeds: int, own: float, trials: int) -> dict[str, int]:
    """How often each interval held the truth: own noise of 1 to 3 % of the loss, beside noise that all runs of a seed
    share; the limit is at 2 %."""
    truth = [curve(0.012), curve(0.008, best=0.098)]
    known = [widest_range(GRID, mean[None]) for mean in truth]
    hits = dict.fromkeys(("low", "high", "factor", "ratio", "best"), 0)
    for trial in range(trials):
        standard, other = losses(truth, seeds, own=own, seed=trial)
        ends = range_intervals(GRID, other)
        for name in ("low", "high", "factor"):
            hits[name] += ends[name][0] <= getattr(known[1], name) <= ends[name][1]
        ratio, best = ratio_interval(GRID, other, standard), best_difference(other, standard)
        hits["ratio"] += ratio[0] <= known[1].factor / known[0].factor <= ratio[1]
        hits["best"] += best["ci_low"] <= -0.002 <= best["ci_high"]
    return hits
