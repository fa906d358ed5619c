"""Pareto-k against scipy's generalised Pareto law; means and limits that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stabledllm.stats.pareto import pareto_k
from tests.checks.statistics import Z


def drawn(k: float, n: int, seed: int) -> np.ndarray:
    return stats.genpareto.rvs(k, size=n, random_state=np.random.default_rng(seed))


@pytest.mark.parametrize("k", [0.2, 0.7])
def test_repeats_spread_as_the_tail_length_says(k):
    repeats = np.array([pareto_k(x) for x in drawn(k, 200_000, 1).reshape(50, -1)])
    assert repeats.std() < 3 * (1 + k) / math.sqrt(3 * math.sqrt(4000))


def test_agrees_with_maximum_likelihood_on_the_same_tail():
    values = np.sort(drawn(0.3, 100_000, 2))
    size = math.ceil(3 * math.sqrt(len(values)))
    k_ml, _, _ = stats.genpareto.fit(values[-size:] - values[-size - 1], floc=0)
    assert pareto_k(values) == pytest.approx((size * k_ml + 5) / (size + 10), abs=0.02)


def test_a_wrong_k_would_show():
    values = drawn(0.7, 200_000, 3)
    tail = math.ceil(3 * math.sqrt(len(values)))
    assert abs(pareto_k(values) - 0.2) > Z * 1.2 / math.sqrt(tail)


def test_neither_scale_nor_level_nor_order_matters():
    x = np.random.default_rng(3).pareto(2.0, 4000)
    for other in (7 * x, 1e-6 * x, 5 + x, x[::-1]):
        assert pareto_k(other) == pytest.approx(pareto_k(x), rel=1e-6)
