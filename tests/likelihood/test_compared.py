"""Ratios at equal forwards, Holm's correction, and how often the best of several is named by mistake."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats

from stabledllm.likelihood.compared import MeasuredNoise, of_positive_ratio, over_items, p_below_zero
from stabledllm.likelihood.holm import holm
from stabledllm.stats.estimate import Estimate


@dataclass(frozen=True)
class Noise(MeasuredNoise):
    QUANTITIES: ClassVar[tuple[str, ...]] = ("gradient",)

    gradient: torch.Tensor


def test_ratios_are_at_equal_forwards():
    """Three forwards with a third of the variance are as good as one."""
    each = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    one, three = Noise("one", 1, each), Noise("three", 3, each / 3)
    assert three.over(one, "gradient").value == pytest.approx(1)
    assert three.as_dict()["gradient"]["value"] == pytest.approx(float(each.mean()) / 3)


def test_the_p_value_is_that_of_the_paired_t_test():
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.rand(9, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 0.4))
    found = Noise("a", 2, one).p_of_less(Noise("b", 2, other), "gradient")
    assert found == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert Noise("b", 2, other).p_of_less(Noise("a", 2, one), "gradient") == 1.0


def test_the_p_value_agrees_with_the_interval():
    generator = torch.Generator().manual_seed(2)
    seen = set()
    for _ in range(40):
        one, other = (torch.rand(8, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 0.25))
        a, b = Noise("a", 1, one), Noise("b", 1, other)
        below = a.over(b, "gradient").below_one is True
        assert below == (a.p_of_less(b, "gradient") < 0.05)
        seen.add(below)
    assert seen == {True, False}


@pytest.mark.parametrize("value", [0.5, 0.0, math.nan])
def test_no_p_value_without_less_noise(value):
    assert p_below_zero(Estimate(value=value, stderr=0.1, n=5)) == 1.0
    assert p_below_zero(over_items(torch.tensor([-1.0]))) == 1.0


def test_holm_keeps_the_order_and_never_passes_one():
    p = [0.2, 0.001, 0.04, 0.9, 0.04]
    corrected = holm(p)
    assert corrected == pytest.approx([0.4, 0.005, 0.16, 0.9, 0.16])
    assert max(holm([0.5, 0.9, 0.8])) == 1.0
    assert holm([]) == []


@pytest.mark.statistical
def test_the_best_of_eight_equals_is_seldom_named():
    """Eight estimators as noisy as Standard: uncorrected one is told apart in every eighth trial, with Holm in few."""
    generator, trials = torch.Generator().manual_seed(3), 400
    named = {"plain": 0, "corrected": 0}
    for _ in range(trials):
        draws = 4 + torch.randn(9, 16, generator=generator, dtype=torch.float64)
        standard, *others = (Noise(str(i), 4, each) for i, each in enumerate(draws))
        p = [other.p_of_less(standard, "gradient") for other in others]
        named["plain"] += min(p) < 0.05
        named["corrected"] += min(holm(p)) < 0.05
    assert named["corrected"] / trials < 0.05
    assert named["plain"] / trials > 0.08


@pytest.mark.statistical
@pytest.mark.parametrize("items", [8, 16])
def test_intervals_hold_the_truth(items):
    """Items whose noise differs by a lognormal law, each variance from 7 degrees of freedom, as of 8 repeats."""
    generator, trials, ratio = torch.Generator().manual_seed(items), 250, 0.6
    held = {"mean": 0, "ratio": 0}
    truth = math.exp(0.5**2 / 2)
    for _ in range(trials):
        level = (0.5 * torch.randn(items, generator=generator, dtype=torch.float64)).exp()
        one, other = (
            level * torch.randn(7, items, generator=generator, dtype=torch.float64).square().mean(0) * scale
            for scale in (1.0, ratio)
        )
        low, high = over_items(one).interval()
        held["mean"] += low <= truth <= high
        found = Noise("other", 4, other).over(Noise("one", 4, one), "gradient")
        held["ratio"] += found.ci_low <= ratio <= found.ci_high
    assert held["mean"] / trials > 0.87, "skewed, of few items"
    assert held["ratio"] / trials > 0.91
    assert held["ratio"] / trials < 0.99


def test_a_ratio_in_proportion_to_the_signal_has_no_scale():
    generator = torch.Generator().manual_seed(5)
    noise, signal = (torch.rand(12, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    found = of_positive_ratio((9 * noise, signal), (noise, 9 * signal))
    assert found.value == pytest.approx(1)
    assert found.ci_high - found.ci_low < 1e-6, "nothing but the scale differs"
    assert math.isnan(of_positive_ratio((noise,), (-signal,)).value)
