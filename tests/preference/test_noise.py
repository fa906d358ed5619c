"""The measured noise of a preference step against enumeration, and its order by estimator."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from stabledllm import UserError
from stabledllm.data.rows import TokenRow
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.noise import Candidate, PairNoise, measure_pairs, vrpo
from tests.float64 import default_float64  # noqa: F401
from tests.preference.test_draws import PAIRS, tiny

BETA = 4.0
ONE_EACH = Pair(TokenRow([3, 1, 4], prompt_length=1), TokenRow([3, 7, 7], prompt_length=1))
"""Responses of two tokens: with an exact count of iid draws a response has three masks, of which two are as likely."""


@pytest.fixture(scope="module")
def models():
    near = tiny(0)
    with torch.no_grad():
        for p in near.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return near, tiny(0)


def laws(policy, reference, row: TokenRow) -> list[tuple[float, float, torch.Tensor]]:
    """Chance, log-ratio and gradient of the bound of one draw with an exact count: every count, every mask."""
    ids, places, size = torch.tensor(row.input_ids), range(row.prompt_length, len(row)), row.response_length
    out = []
    for k in range(1, size + 1):
        for masked in map(list, itertools.combinations(places, k)):
            noisy = ids.clone()
            noisy[masked] = 9
            bounds = [
                -size / k * F.cross_entropy(model(noisy[None]).logits[0, masked], ids[masked], reduction="sum")
                for model in (policy, reference)
            ]
            slope = torch.autograd.grad(bounds[0], list(policy.parameters()))
            flat = torch.cat([g.flatten() for g in slope])
            out.append((1 / size / math.comb(size, k), float(bounds[0].detach() - bounds[1].detach()), flat))
    return out


def exact(policy, reference, pair: Pair) -> tuple[float, float, float, float]:
    """Variance of margin, loss and gradient, and the loss's bias, of one shared draw of each response."""
    cells = []
    for (p, a, ga), (q, b, gb) in itertools.product(
        *(laws(policy, reference, r) for r in (pair.chosen, pair.rejected))
    ):
        margin = BETA * (a - b)
        cells.append((p * q, margin, math.log1p(math.exp(-margin)), -BETA / (1 + math.exp(margin)) * (ga - gb)))
    chance = torch.tensor([c[0] for c in cells])
    margin, loss = (torch.tensor([c[i] for c in cells]) for i in (1, 2))
    gradient = torch.stack([c[3] for c in cells])

    def variance(x):
        mean = chance @ x
        return float(chance @ ((x - mean) ** 2 if x.dim() == 1 else ((x - mean) ** 2).sum(1)))

    bias = float(chance @ loss) - math.log1p(math.exp(-float(chance @ margin)))
    return variance(margin), variance(loss), variance(gradient), bias


@pytest.mark.statistical
def test_variances_and_bias_by_enumeration(models):
    """A pair under 30 numbers, 16 repeats each: the error of the mean is that over the numbers."""
    candidate = Candidate("fixedcount", BoundEstimator("fixedcount", 1, eps=0.0))
    (found,) = measure_pairs(*models, [ONE_EACH] * 30, [candidate], DPOLoss(BETA), repeats=16)
    for name, truth in zip(("margin", "loss", "gradient", "bias"), exact(*models, ONE_EACH), strict=True):
        estimate = found.mean(name)
        slack = 0.02 * truth if name == "bias" else 0.0
        assert abs(estimate.value - truth) < 4.5 * estimate.stderr + slack, (name, estimate, truth)
        assert estimate.stderr < 0.25 * truth, name


@pytest.mark.statistical
def test_sharing_and_less_noise_show(models):
    four = {"budget": 4, "eps": 0.0}
    candidates = [
        Candidate("shared", BoundEstimator("standard", **four)),
        Candidate("apart", BoundEstimator("standard", **four), shared=False),
        Candidate("ours", BoundEstimator("lowdisc+fixedcount", **four)),
    ]
    shared, apart, ours = measure_pairs(*models, PAIRS * 4, candidates, DPOLoss(1.0), repeats=6)
    assert apart.over(shared, "margin").ci_low > 3
    assert ours.over(shared, "gradient").ci_high < 1
    assert shared.forwards == 4


def test_chosen_parameters_are_a_part_of_all(models):
    candidate = Candidate("c", BoundEstimator(budget=2))
    whole, part = (
        measure_pairs(*models, PAIRS, [candidate], DPOLoss(), repeats=3, parameters=which)[0]
        for which in (None, ["blocks.*"])
    )
    assert (part.gradient < whole.gradient).all()
    assert torch.equal(part.margin, whole.margin)


def test_models_are_left_as_they_were(models):
    policy, reference = models
    policy.train()
    before = [p.clone() for p in policy.parameters()]
    done = []
    measure_pairs(
        policy, reference, PAIRS[:1], [Candidate("c", BoundEstimator(budget=1))], DPOLoss(), repeats=2,
        progress=done.append,
    )  # fmt: skip
    assert policy.training
    policy.eval()
    assert all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert done == [1]


def test_one_pair_gives_no_interval():
    one = torch.ones(1)
    noise = PairNoise("x", 1, one, one, one, one)
    assert math.isnan(noise.mean("loss").stderr)
    assert not noise.over(noise, "loss").is_known


@pytest.mark.parametrize(("pairs", "repeats"), [([], 4), (PAIRS, 1)])
def test_refusals(models, pairs, repeats):
    with pytest.raises(UserError, match="expected pairs and at least 2 repeats"):
        measure_pairs(*models, pairs, [], DPOLoss(), repeats=repeats)


def test_vrpos_candidates_have_its_numbers_of_ratios_and_masks(models):
    for ratios, masks, shared in ((4, 1, True), (2, 2, True), (1, 4, True), (1, 1, True), (4, 1, False)):
        one = vrpo(ratios, masks, shared=shared, eps=0.0)
        plan = one.estimator.draw(models[0], PAIRS, range(len(PAIRS)), seed=0).plan
        assert (plan.t.shape[2], plan.method.views.count) == (ratios, masks)
        assert (one.estimator.budget, one.shared) == (ratios * masks, shared)


@pytest.mark.statistical
def test_the_variance_between_pairs_is_that_of_their_mean_gradients(models):
    """Two pairs whose mean gradients are known by enumeration, under ten numbers each."""
    candidate = Candidate("fixedcount", BoundEstimator("fixedcount", 1, eps=0.0))
    other = Pair(ONE_EACH.rejected, ONE_EACH.chosen)
    means = [mean_gradient(*models, pair) for pair in (ONE_EACH, other)]
    truth = float((means[0] - means[1]) @ (means[0] - means[1])) / 2
    found = [
        measure_pairs(*models, [ONE_EACH, other], [candidate], DPOLoss(BETA), repeats=6, seed=seed)[0].between
        for seed in range(16)
    ]
    found = torch.tensor(found)
    assert abs(float(found.mean()) - truth) < 4.5 * float(found.std()) / 4
    assert float(found.std()) / 4 < 0.3 * truth


def mean_gradient(policy, reference, pair: Pair) -> torch.Tensor:
    total = 0.0
    for (p, a, ga), (q, b, gb) in itertools.product(
        *(laws(policy, reference, r) for r in (pair.chosen, pair.rejected))
    ):
        total = total - p * q * BETA / (1 + math.exp(BETA * (a - b))) * (ga - gb)
    return total
