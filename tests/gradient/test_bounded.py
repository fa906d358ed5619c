import math

import pytest
import torch

from stabledllm.gradient.bounded import cosine, ends_within, not_negative
from stabledllm.gradient.components import noise_scale
from stabledllm.stats.estimate import Estimate, student
from stabledllm.stats.jackknife import jackknife
from tests.checks.cosine_coverage import coverage, of_clipping, of_prompts, true_cosine, turning


def test_intervals_of_the_cosine_under_clipping_hold_the_truth():
    generator, truth = torch.Generator().manual_seed(0), true_cosine(2.0)
    assert truth < 0.96, "clipping turns the mean"
    found = coverage(lambda: of_clipping(turning(16, generator)), truth, trials=200)
    assert found["held"] > 0.85
    assert found["student"] < 0.75
    assert found["width"] < 0.3
    assert found["anything"] < 0.02


@pytest.mark.parametrize("truth", [0.6, 0.95])
def test_intervals_of_the_cosine_over_prompts_hold_the_truth(truth):
    generator = torch.Generator().manual_seed(0)
    found = coverage(lambda: of_prompts(12, generator, truth), truth, trials=300)
    assert found["held"] > 0.95
    assert found["held"] > found["student"] + 0.02
    assert found["width"] < 0.8


def test_the_error_of_a_cosine_is_that_of_the_jackknife():
    each = torch.tensor([[1.0, 2.0, 1.0], [0.8, 1.1, 0.9], [1.2, 1.9, 1.0], [0.9, 2.0, 1.1], [0.7, 1.5, 0.8]]).double()

    def ratio(keep: torch.Tensor) -> float:
        product, one, other = each[keep].mean(0)
        return float(product / (one * other).sqrt())

    found = cosine(each.mean(0), [(each.sum(0) - each) / 4])
    assert (found.value, found.stderr) == pytest.approx(
        (ratio(torch.arange(5)), jackknife(ratio, 5, "").stderr), rel=0.05
    )


def test_figures_in_proportion_have_no_error():
    """Rounding makes their variance negative as often as not."""
    for seed in range(50):
        sizes = torch.rand(8, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        each = sizes * torch.tensor([0.4706, 0.8078, 0.5594])
        found = cosine(each.mean(0), [(each.sum(0) - each) / 7])
        assert found.stderr == pytest.approx(0, abs=1e-6)
        assert found.interval() == pytest.approx((found.value, found.value), abs=1e-5)


def test_little_more_or_less_than_1_is_no_other_interval():
    without = 1e-2 * torch.tensor([[-1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0]]) / 3
    lows = []
    for value in (0.99, 0.999, 1.001, 1.01, 1.04):
        figures = torch.tensor([value, 1.0, 1.0])
        found = cosine(figures, [figures + without])
        low, high = found.interval()
        lows.append(low)
        assert (found.value, high) == pytest.approx((min(value, 1), 1)), "it is cut, and never sure"
        assert low < 0.995
    assert min(lows) > 0.85, "an error of 0.01"


def test_what_cannot_be_negative_has_an_end_wherever_its_estimate_lies():
    highs = [not_negative(Estimate(value=v, stderr=1.0, n=12)).interval()[1] for v in (-0.001, 0.001, 0.5, 1.0, 2.0)]
    assert highs == pytest.approx([student(11) * math.e] * 5), "of the least that is told apart from 0"
    low, high = not_negative(Estimate(value=5.0, stderr=1.0, n=12)).interval()
    assert (low, high) == pytest.approx((5 - student(11), 5 * math.exp(student(11) / 5)))
    unknown = Estimate(value=2.0, stderr=math.nan, n=2)
    assert not_negative(unknown) == unknown


def test_a_cosine_whose_norms_may_be_0_may_be_anything_and_is_not_known_below():
    spread = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    figures = torch.tensor([0.5, 1.0, 1.0])
    sure = cosine(figures, [figures + 1e-3 * torch.outer(spread, torch.tensor([1.0, 0.5, 0.0]))])
    assert sure.interval()[0] > 0.4
    unsure = cosine(figures, [figures + torch.outer(spread, torch.tensor([0.0, 0.9, 0.0]))])
    assert unsure.interval() == (-1.0, 1.0)
    below = cosine(torch.tensor([0.5, -1.0, -1.0]), [figures.expand(4, 3)])
    assert math.isnan(below.value + below.stderr), "the product of two negative squared norms is no norm's"


def test_the_error_of_a_projection_widens_the_interval():
    figures = torch.tensor([0.5, 1.0, 1.0])
    of_steps = figures + 1e-2 * torch.tensor([[-1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0]])
    one, both = cosine(figures, [of_steps]), cosine(figures, [of_steps, of_steps])
    assert both.stderr == pytest.approx(one.stderr * 2**0.5)
    assert both.interval()[0] < one.interval()[0]


def test_ends_within_are_those_at_which_the_difference_may_be_0():
    means, covariance = torch.tensor([1.0, 2.0]), torch.tensor([[0.01, 0.004], [0.004, 0.02]])
    for end in ends_within(means, covariance, 7, (0.0, 1.0)):
        error = (covariance[0, 0] - 2 * end * covariance[0, 1] + end**2 * covariance[1, 1]) ** 0.5
        assert abs(float(means[0] - end * means[1])) == pytest.approx(student(7) * float(error))


def test_an_interval_that_misses_the_limits_holds_half_its_width():
    covariance = torch.diag(torch.tensor([0.01, 0.0]))
    half = student(9) * 0.1 / 2
    for mean, ends in ((-1.0, (0, half)), (3.0, (1 - half, 1))):
        assert ends_within(torch.tensor([mean, 2.0]), covariance, 9, (0.0, 1.0)) == pytest.approx(ends)


def test_products_without_a_prompt_are_of_the_same_scale():
    figures, (without,) = of_prompts(6, torch.Generator().manual_seed(0), 0.9, noise=0.0, spread=0.0)
    assert torch.allclose(without, figures.expand(6, 3))


def test_a_noise_scale_over_nothing_is_not_known():
    found = noise_scale(lambda keep: torch.tensor([6.0]), lambda keep: torch.tensor([-2.0]), rows=4)
    assert math.isnan(found.value)
