"""The loss of pairs, its bias from noise, and the derivative by each estimate."""

import math

import pytest
import torch
import torch.nn.functional as F

from stabledllm import UserError
from stabledllm.preference.loss import DPOLoss
from tests.checks.statistics import assert_mean
from tests.float64 import default_float64  # noqa: F401

GENERATOR = torch.Generator().manual_seed(3)
POLICY, REFERENCE = (-20 + torch.randn(5, 2, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
TOKENS = torch.tensor([[4, 9]]).expand(5, 2)


def noisy_losses(loss: DPOLoss, sd: float, replicates: int, draws: int = 400_000) -> torch.Tensor:
    """Losses of one pair with the true margin 0.4, from estimates with normal errors in the rejected one's policy."""
    errors = sd * torch.randn(draws, replicates, generator=torch.Generator().manual_seed(1)) / loss.beta
    policy = torch.zeros(draws, 2, replicates)
    policy[:, 0], policy[:, 1] = 0.4 / loss.beta, errors
    return loss(policy, torch.zeros_like(policy), torch.ones(draws, 2)).value


def test_the_published_formula():
    found = DPOLoss(beta=0.2)(POLICY, REFERENCE, TOKENS)
    ratio = (POLICY - REFERENCE).mean(2)
    margin = 0.2 * (ratio[:, 0] - ratio[:, 1])
    torch.testing.assert_close(found.value, -F.logsigmoid(margin))
    torch.testing.assert_close(found.margin, margin)
    torch.testing.assert_close(found.rewards, 0.2 * ratio)


def test_the_chosen_ones_nll_is_added_per_token():
    plain, mixed = (DPOLoss(sft=sft)(POLICY, REFERENCE, TOKENS).value for sft in (0.0, 0.5))
    torch.testing.assert_close(mixed - plain, -0.5 * POLICY[:, 0].mean(1) / 4)


@pytest.mark.statistical
def test_noise_makes_a_bias_that_is_estimated_and_taken_off():
    """Of a normal error with the variance V of the mean margin: s (1 - s) V / 2 to second order."""
    truth, s = math.log1p(math.exp(-0.4)), 1 / (1 + math.exp(-0.4))
    sd, replicates = 0.5, 4
    plain = noisy_losses(DPOLoss(beta=0.2), sd, replicates)
    corrected = noisy_losses(DPOLoss(beta=0.2, correction="jackknife"), sd, replicates)
    second_order = s * (1 - s) / 2 * sd**2 / replicates
    assert float(plain.mean()) - truth == pytest.approx(second_order, rel=0.1), "what is left is of higher order"
    assert_mean(corrected, truth, "corrected")


def test_the_bias_is_the_difference_between_the_two():
    plain, corrected = (DPOLoss(correction=c)(POLICY, REFERENCE, TOKENS) for c in ("none", "jackknife"))
    torch.testing.assert_close(plain.value - corrected.value, plain.bias)
    assert (plain.bias > 0).all(), "-log sigmoid is convex"
    assert torch.equal(plain.bias, corrected.bias)


def test_one_replicate_has_no_bias_and_allows_no_correction():
    one = POLICY[:, :, :1], REFERENCE[:, :, :1], TOKENS
    assert DPOLoss()(*one).bias.isnan().all()
    with pytest.raises(UserError, match="at least 2 replicates for jackknife, found 1"):
        DPOLoss(correction="jackknife")(*one)


@pytest.mark.parametrize("loss", [DPOLoss(beta=0.7, sft=0.3), DPOLoss(beta=0.7, correction="jackknife", sft=0.3)])
def test_slopes_are_the_derivative(loss):
    found, slopes = loss.with_slopes(POLICY, REFERENCE, TOKENS)
    assert not found.value.requires_grad
    for at in ((0, 0, 0), (3, 1, 2)):
        step = torch.zeros_like(POLICY)
        step[at] = 1e-6
        moved = [loss(POLICY + sign * step, REFERENCE, TOKENS).value.sum() for sign in (1, -1)]
        assert float(slopes[at]) == pytest.approx(float(moved[0] - moved[1]) / 2e-6, rel=1e-5)


def test_large_margins_overflow_nothing():
    found, slopes = (
        DPOLoss()(-1e6 * POLICY, REFERENCE, TOKENS),
        DPOLoss().with_slopes(1e6 * POLICY, REFERENCE, TOKENS)[1],
    )
    assert found.value.isfinite().all()
    assert slopes.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"beta": 0}, "dpo.beta: expected a number above 0, found 0"),
        ({"beta": math.nan}, "dpo.beta"),
        ({"sft": -1}, "dpo.sft: expected a number of at least 0"),
        ({"correction": "jacknife"}, "found 'jacknife'.*jackknife"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        DPOLoss(**arguments)
