"""The clipped loss against the formula written out term by term, and its slopes against autograd through a model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.policy.loss import GRPOLoss

LENGTHS = [3, 1, 5, 4]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, -2.0], dtype=torch.float64)


def estimates(width: int, seed: int, spread: float = 0.4) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return -2 + spread * torch.randn(len(LENGTHS), width, generator=gen, dtype=torch.float64)


def divergence(kind: str, d: torch.Tensor) -> torch.Tensor:
    return {"k1": -d, "k2": 0.5 * d**2, "k3": torch.exp(d) - d - 1}[kind]


def term(cur, old, ref, advantage, clip, high, beta, kl):
    rho = math.e ** (cur - old)
    bounded = min(max(rho, torch.tensor(1.0 - clip)), torch.tensor(1.0 + high))
    return -min(rho * advantage, bounded * advantage) + beta * divergence(kl, ref - cur)


def by_hand(loss: GRPOLoss, current, old, reference, scored):
    """The value of each response, in Python over single numbers."""
    clip, high = loss.clip, loss.clip if loss.clip_high is None else loss.clip_high
    values = []
    for i, length in enumerate(LENGTHS):
        a = ADVANTAGES[i]
        if loss.ratio == "token":
            places = [j for j in range(length) if scored[i, j]]
            each = [term(current[i, j], old[i, j], reference[i, j], a, clip, high, loss.beta, loss.kl) for j in places]
            values.append(sum(each) / (len(places) if loss.mean == "response" else 1))
            continue
        n = length if loss.ratio == "mean" else 1
        cur, was, ref = (v[i].sum() / len(v[i]) / n for v in (current, old, reference))
        values.append(term(cur, was, ref, a, clip, high, loss.beta, loss.kl))
    return torch.stack(values)


HOW = [
    (ratio, clip_high, mean, beta, kl)
    for ratio, clip_high, mean, (beta, kl) in itertools.product(
        ("token", "mean", "sequence"), (None, 0.6), ("response", "token"),
        ((0.0, "k1"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")),
    )
    if ratio == "token" or mean == "response"
]  # fmt: skip


@pytest.mark.parametrize(("ratio", "clip_high", "mean", "beta", "kl"), HOW)
def test_value_and_slopes_are_those_of_the_formula(ratio, clip_high, mean, beta, kl):
    loss, width = GRPOLoss(ratio, 0.2, clip_high, mean, beta, kl), max(LENGTHS) if ratio == "token" else 2
    current, old, reference = (estimates(width, seed) for seed in (1, 2, 3))
    inside = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    scored = inside if ratio == "token" else None
    if ratio == "token":
        scored[2, 1] = False
        current, old, reference = (v * scored for v in (current, old, reference))
    given = current.clone().requires_grad_()
    wanted = by_hand(loss, given, old, reference, scored)
    found, slopes = loss.with_slopes(current, old, reference, ADVANTAGES, torch.tensor(LENGTHS), scored)
    torch.testing.assert_close(found.value, wanted.detach())
    torch.testing.assert_close(slopes, torch.autograd.grad(wanted.sum(), given)[0])
    assert not found.value.requires_grad
    assert slopes.abs().sum() > 0


def test_token_estimates_may_have_the_ratio_of_the_whole_response():
    scored = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    scored[3, 0] = False
    current, old = (estimates(5, seed) * scored for seed in (1, 2))
    found = GRPOLoss("mean")(current, old, None, ADVANTAGES, torch.tensor(LENGTHS), scored)
    summed = ((current - old).sum(1) / torch.tensor([3, 1, 5, 3])).exp()
    torch.testing.assert_close(found.ratio, summed)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    """The ratio is 1 there, within its bounds: the slope of each estimate is -A over what it is divided by."""
    current = estimates(2, 1)
    found, slopes = GRPOLoss("mean").with_slopes(current, current, None, ADVANTAGES, torch.tensor(LENGTHS))
    wanted = (-ADVANTAGES / torch.tensor(LENGTHS) / 2)[:, None].expand(-1, 2)
    torch.testing.assert_close(slopes, wanted)
    assert found.clipped.sum() == 0


def test_what_is_clipped_is_counted_on_its_side():
    zero = torch.zeros(4, 1, dtype=torch.float64)
    current = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found, slopes = GRPOLoss("sequence").with_slopes(current, zero, None, advantage, torch.ones(4))
    assert found.clipped_high.tolist() == [1, 0, 0, 0]
    assert found.clipped_low.tolist() == [0, 0, 0, 1]
    assert (slopes[:, 0] == 0).tolist() == [True, False, False, True]


def test_a_ratio_beyond_all_numbers_is_held_like_any_other():
    """exp(120) is infinite in float32: what is clipped has a loss and no gradient, as at any ratio above the bound."""
    current, zero = torch.full((2, 1), 120.0), torch.zeros(2, 1)
    found, slopes = GRPOLoss("sequence").with_slopes(current, zero, None, torch.tensor([2.0, 0.0]), torch.ones(2))
    torch.testing.assert_close(found.value, torch.tensor([-2.4, 0.0]))
    assert slopes.tolist() == [[0.0], [0.0]]
    assert found.clipped_high.tolist() == [1.0, 0.0]
    unheld = GRPOLoss("sequence")(current, zero, None, torch.tensor([-1.0, -1.0]), torch.ones(2))
    assert torch.isinf(unheld.value).all(), "of a negative advantage the loss is as large as the ratio"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"ratio": "tokens"}, r"grpo.ratio: expected token, mean or sequence, found 'tokens' \(did you mean 'token'"),
        ({"kl": "k4"}, "grpo.kl: expected k1, k2 or k3, found 'k4'"),
        ({"clip": 0.0}, "grpo.clip: expected a number above 0"),
        ({"clip_high": -1.0}, "grpo.clip_high: expected a number above 0"),
        ({"beta": -0.1}, "grpo.beta: expected a number of at least 0"),
        ({"mean": "token"}, "expected response with ratios of responses"),
    ],
)
def test_keys_that_have_no_meaning(how, words):
    with pytest.raises(UserError, match=words):
        GRPOLoss(**how)


def test_what_a_loss_needs_is_asked_for():
    zero = torch.zeros(1, 1)
    with pytest.raises(UserError, match="expected estimates of tokens for ratios of tokens"):
        GRPOLoss("token")(zero, zero, None, zero[0], zero[0])
    with pytest.raises(UserError, match="a divergence of weight"):
        GRPOLoss(beta=0.1)(zero, zero, None, zero[0], zero[0])


def test_a_response_in_which_nothing_is_scored_has_the_ratio_1_and_no_loss():
    scored = torch.tensor([[True, True], [False, False]])
    values = torch.tensor([[0.1, 0.3], [0.0, 0.0]])
    found = GRPOLoss("token")(values, torch.zeros(2, 2), None, torch.ones(2), torch.tensor([2, 2]), scored)
    assert float(found.ratio[1]) == 1.0
    assert float(found.value[1]) == 0.0
