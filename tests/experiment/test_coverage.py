"""The intervals over seeds and over verdicts hold the truth as often as they say, under the law they are made for."""

from __future__ import annotations

import numpy as np
import pytest

from stabledllm.experiment.power import power
from stabledllm.experiment.spread import sd_interval, sd_ratio
from stabledllm.experiment.summary import paired, t_interval
from stabledllm.tasks.scoring import wilson_interval
from tests.checks.moments import assert_covers
from tests.checks.statistics import Z

pytestmark = pytest.mark.statistical
TRIALS = 400


def holds(ends, truth: float) -> bool:
    return ends[0] <= truth <= ends[1]


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_over_seeds(seeds):
    """Means, paired differences, sds and their ratios, of runs that share a part of their noise."""
    shared, own = np.random.default_rng(seeds).standard_normal((2, TRIALS, 2, seeds))
    runs = 0.7 * shared[:, :1] + own * np.array([1.0, 2.0])[:, None]
    sds = (0.49 + 1.0) ** 0.5, (0.49 + 4.0) ** 0.5
    hits = dict.fromkeys(("mean", "difference", "sd", "ratio"), 0)
    for standard, other in runs.tolist():
        one, two = dict(enumerate(other)), dict(enumerate(standard))
        versus, ratio = paired(one, two), sd_ratio(one, two)
        hits["mean"] += holds(t_interval(other), 0.0)
        hits["difference"] += holds((versus["ci_low"], versus["ci_high"]), 0.0)
        hits["sd"] += holds(sd_interval(other), sds[1])
        hits["ratio"] += holds((ratio["ci_low"], ratio["ci_high"]), sds[1] / sds[0])
    for name, found in hits.items():
        assert_covers(found, TRIALS, f"{name} over {seeds} seeds")


def test_1_96_errors_over_3_seeds_are_found_to_miss():
    values = np.random.default_rng(0).standard_normal((TRIALS, 3))
    naive = np.abs(values.mean(1)) <= 1.96 * values.std(1, ddof=1) / 3**0.5
    with pytest.raises(AssertionError):
        assert_covers(int(naive.sum()), TRIALS, "normal intervals of 3 seeds")


@pytest.mark.parametrize("n", [24, 128])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_of_verdicts(n, share):
    correct = np.random.default_rng(n).binomial(n, share, TRIALS)
    assert_covers(sum(holds(wilson_interval(int(k), n), share) for k in correct), TRIALS, f"accuracy {share} of {n}")


@pytest.mark.parametrize(("difference", "seeds"), [(0.0, 4), (1.0, 5), (0.8, 12)])
def test_power_is_the_share_of_experiments_that_find_a_difference(difference, seeds):
    values = difference + np.random.default_rng(seeds).standard_normal((TRIALS, seeds))
    none = dict.fromkeys(range(seeds), 0.0)
    found = sum(paired(dict(enumerate(x)), none)["p_value"] < 0.05 for x in values.tolist())
    expected = power(difference, 1.0, seeds)
    assert abs(found / TRIALS - expected) <= Z * (expected * (1 - expected) / TRIALS) ** 0.5
