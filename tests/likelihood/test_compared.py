"""Ratios at equal forwards, Holm's correction, and how often the best of several is named by mistake."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats

from stabledllm.likelihood.compared import MeasuredNoise, holm, over_items, p_below_zero
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
    assert three.p_of_less(one, "gradient") == pytest.approx(1, abs=0.2) or three.p_of_less(one, "gradient") == 1.0
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
    """Eight estimators as noisy as Standard: uncorrected one is told apart in every sixth trial, with Holm in few."""
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
