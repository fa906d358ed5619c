"""Draws that policy and reference share: the same whatever stands beside a pair; parts add up to the whole gradient."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from stabledllm import UserError, elbo
from stabledllm.data.rows import TokenRow
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from tests.float64 import default_float64  # noqa: F401

PAIRS = [
    Pair(TokenRow([3, 1, 4, 1, 5], prompt_length=2), TokenRow([3, 1, 7, 7], prompt_length=2)),
    Pair(TokenRow([2, 7, 1, 8], prompt_length=1), TokenRow([2, 6, 6], prompt_length=1)),
    Pair(TokenRow([5, 5, 1], prompt_length=1), TokenRow([5, 8, 2, 2, 2], prompt_length=1)),
]


def tiny(seed: int) -> TinyMDM:
    torch.manual_seed(seed)
    return TinyMDM(TinyMDMConfig(12, 8, 1, 2, 16, mask_token_id=9, initializer_range=0.5)).double().eval()


@pytest.fixture
def policy():
    return tiny(0)


@pytest.fixture
def reference():
    return tiny(1)


def gradient_of_parts(model, draws, slopes) -> torch.Tensor:
    model.zero_grad()
    for part in draws.parts(model, slopes):
        part.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def exact_bound(model, row: TokenRow) -> torch.Tensor:
    """Every mask enumerated, at eps = 0."""
    ids, places = torch.tensor(row.input_ids), range(row.prompt_length, len(row))
    total = torch.zeros(())
    for k in range(1, row.response_length + 1):
        for chosen in map(list, itertools.combinations(places, k)):
            noisy = ids.clone()
            noisy[chosen] = 9
            nll = F.cross_entropy(model(noisy[None]).logits[0, chosen], ids[chosen], reduction="sum")
            total = total - nll / k / math.comb(row.response_length, k)
    return total


def test_a_batch_a_pair_and_another_order_see_the_same_noise(policy):
    how = BoundEstimator()
    whole = how.draw(policy, PAIRS, [4, 0, 9], seed=3, step=1).values(policy)
    assert whole.shape == (3, 2, 2)
    alone = [
        how.draw(policy, [p], [n], seed=3, step=1).values(policy)[0] for p, n in zip(PAIRS, (4, 0, 9), strict=True)
    ]
    torch.testing.assert_close(torch.stack(alone), whole, rtol=0, atol=1e-12)
    turned = how.draw(policy, PAIRS[::-1], [9, 0, 4], seed=3, step=1).values(policy)
    torch.testing.assert_close(turned.flip(0), whole, rtol=0, atol=1e-12)
    for other in ({"seed": 4, "step": 1}, {"seed": 3, "step": 2}):
        assert not torch.allclose(how.draw(policy, PAIRS, [4, 0, 9], **other).values(policy), whole)


def test_the_two_responses_of_a_pair_have_noise_of_their_own(policy):
    """Equal responses under one noise would give a margin of 0 whatever the models say."""
    same = Pair(PAIRS[0].chosen, PAIRS[0].chosen)
    values = BoundEstimator().draw(policy, [same], [0], seed=0).values(policy)
    assert not torch.allclose(values[:, 0], values[:, 1])


def test_the_values_are_those_of_elbo(policy):
    values = BoundEstimator(budget=6).draw(policy, PAIRS, [0, 1, 2], seed=5).values(policy)
    for side, rows in enumerate(([p.chosen for p in PAIRS], [p.rejected for p in PAIRS])):
        found = elbo(policy, rows, budget=6, seed=5, numbers=[side, 2 + side, 4 + side]).value
        torch.testing.assert_close(values[:, side].mean(1), found.detach())


def test_equal_models_have_no_margin_and_the_log_of_two(policy):
    draws = BoundEstimator().draw(policy, PAIRS, [0, 1, 2], seed=0)
    values = draws.values(policy)
    found = DPOLoss()(values, draws.values(policy), draws.tokens)
    assert (found.margin == 0).all()
    torch.testing.assert_close(found.value, torch.full((3,), math.log(2)))
    assert draws.tokens.tolist() == [list(pair.tokens) for pair in PAIRS]


@pytest.mark.parametrize("method", ["lowdisc+fixedcount", "standard", "mirror", "lowdisc+complement"])
@pytest.mark.parametrize("loss", [DPOLoss(beta=0.5), DPOLoss(beta=0.5, correction="jackknife", sft=0.2)])
def test_one_backward_for_each_forward_is_the_joint_gradient(policy, reference, method, loss):
    draws = BoundEstimator(method, tokens_per_batch=12).draw(policy, PAIRS, [0, 1, 2], seed=2)
    of_reference = draws.values(reference)
    _, slopes = loss.with_slopes(draws.values(policy), of_reference, draws.tokens)
    in_parts = gradient_of_parts(policy, draws, slopes)

    joint = draws.plan.groups * sum(part for part, _ in draws.plan.run(policy))
    value = loss(joint.unflatten(0, (2, -1)).transpose(0, 1), of_reference, draws.tokens).value.sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(policy.parameters()))])
    torch.testing.assert_close(in_parts, expected)
    assert sum(1 for _ in draws.plan.run(policy)) > 3


@pytest.mark.statistical
def test_shared_draws_keep_the_mean_margin_and_take_most_of_its_noise(policy):
    """The policy is near its reference, as in training; each pair stands 400 times under numbers of its own."""
    near = tiny(0)
    with torch.no_grad():
        for p in near.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    how, repeats = BoundEstimator("standard", 4, eps=0.0), 400
    pair, numbers = [PAIRS[0]] * repeats, range(repeats)
    draws, others = (how.draw(policy, pair, numbers, seed=seed) for seed in (0, 1))
    exact = [exact_bound(model, row) for model in (near, policy) for row in (PAIRS[0].chosen, PAIRS[0].rejected)]
    truth = float(((exact[0] - exact[2]) - (exact[1] - exact[3])).detach())
    margins = {}
    for name, of_reference in (("shared", draws.values(policy)), ("apart", others.values(policy))):
        ratio = (draws.values(near) - of_reference).mean(2)
        margins[name] = ratio[:, 0] - ratio[:, 1]
        error = float(margins[name].std()) / repeats**0.5
        assert abs(float(margins[name].mean()) - truth) < 5 * error, name
    assert float(margins["shared"].var()) < 0.05 * float(margins["apart"].var())


def test_refusals(policy):
    with pytest.raises(UserError, match="a number for each of 3 pairs, found 2"):
        BoundEstimator().draw(policy, PAIRS, [0, 1], seed=0)
    with pytest.raises(UserError, match="numbers: expected another number"):
        BoundEstimator().draw(policy, PAIRS, [0, 1, 1], seed=0)
