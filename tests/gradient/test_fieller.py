import math

import pytest
import torch

from stabledllm.gradient.fieller import cosine, ends_within
from stabledllm.stats.estimate import student
from tests.checks.cosine_coverage import coverage, of_clipping, of_prompts, true_cosine, turning


def test_intervals_of_the_cosine_under_clipping_hold_the_truth():
    generator = torch.Generator().manual_seed(0)
    truth = true_cosine(turning(100_000, generator))
    assert truth < 0.96, "clipping turns the mean"
    held, of_student, unknown = coverage(lambda: of_clipping(turning(16, generator)), truth, trials=200)
    assert (held > 0.93, of_student < 0.8, unknown) == (True, True, 0)


def test_intervals_of_the_cosine_over_prompts_hold_the_truth():
    generator = torch.Generator().manual_seed(0)
    held, _, unknown = coverage(lambda: of_prompts(24, generator, 1.0), 1.0, trials=400)
    assert (held > 0.93, unknown) == (True, 0)


def test_a_cosine_whose_norms_may_be_0_may_be_anything_and_is_not_known_below():
    spread = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    figures = torch.tensor([0.5, 1.0, 1.0])
    sure = cosine(figures, [figures + 1e-3 * torch.outer(spread, torch.tensor([1.0, 0.5, 0.0]))])
    assert sure.interval()[0] > 0.4
    unsure = cosine(figures, [figures + torch.outer(spread, torch.tensor([0.0, 0.9, 0.0]))])
    assert unsure.interval() == (-1.0, 1.0)
    below = cosine(torch.tensor([0.5, -1.0, -1.0]), [figures.expand(4, 3)])
    assert math.isnan(below.value + below.stderr), "the product of two negative squared norms is no norm's"


def test_an_estimate_beyond_1_is_1():
    figures = torch.tensor([1.04, 1.0, 1.0])
    found = cosine(figures, [figures + torch.tensor([[-1e-3, 0, 0], [1e-3, 0, 0], [-1e-3, 0, 0], [1e-3, 0, 0]])])
    assert (found.value, found.interval()) == (1.0, (1.0, 1.0))
    assert found.stderr > 0


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
