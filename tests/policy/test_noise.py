"""The measured noise of a policy gradient against enumeration; estimators of something else are told by their mean."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from stabledllm import UserError
from stabledllm.data.rows import TokenRow
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.policy.loss import GRPOLoss
from stabledllm.policy.noise import Candidate, Group, GroupNoise, Models, measure_groups
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood.models import MASK, ROWS, tiny

GROUP = Group(
    [TokenRow([3, 1, 4], prompt_length=1), TokenRow([3, 7, 7], prompt_length=1)], torch.tensor([1.0, -1.0])
)  # fmt: skip
"""Responses of two tokens: with an exact count of one draw a response has three masks, of which two are as likely."""
LOSSES = {
    "sequence": GRPOLoss("sequence", clip=0.1, beta=0.5),
    "mean": GRPOLoss("mean", clip=0.1),
    "token": GRPOLoss("token", clip=0.1, clip_high=0.3, beta=0.5, kl="k2"),
    "token, mean of tokens": GRPOLoss("token", clip=0.1, mean="token"),
}


@pytest.fixture(scope="module")
def models():
    near, generator = tiny(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in near.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return Models(near, tiny(0), tiny(0))


def laws(models: Models, row: TokenRow) -> list[tuple[float, list[torch.Tensor]]]:
    """Chance of each mask under one draw with an exact count, and the models' estimates by token, shape (P,)."""
    ids, places, size = torch.tensor(row.input_ids), range(row.prompt_length, len(row)), row.response_length
    out = []
    for k in range(1, size + 1):
        for masked in map(list, itertools.combinations(places, k)):
            noisy, there = ids.clone(), torch.zeros(len(row)).index_fill(0, torch.tensor(masked), size / k)
            noisy[masked] = MASK
            each = [
                -F.cross_entropy(model(noisy[None]).logits[0], ids, reduction="none") * there
                for model in (models.policy, models.old, models.reference)
            ]
            out.append((1 / size / math.comb(size, k), [values[row.prompt_length :] for values in each]))
    return out


def by_hand(loss: GRPOLoss, of_responses: list[list[torch.Tensor]]) -> torch.Tensor:
    """The group's mean loss, written out; for each response the values of policy, old policy and reference."""
    total = 0.0
    for advantage, (current, old, reference) in zip(GROUP.advantages, of_responses, strict=True):
        if loss.ratio != "token":
            divisor = len(current) if loss.ratio == "mean" else 1
            current, old, reference = (x.sum()[None] / divisor for x in (current, old, reference))
        ratio, d = torch.exp(current - old), reference - current
        bounded = torch.clamp(ratio, 1 - loss.clip, 1 + (loss.clip_high or loss.clip))
        kl = d**2 / 2 if loss.kl == "k2" else torch.exp(d) - d - 1
        total = total + (-torch.minimum(ratio * advantage, bounded * advantage) + loss.beta * kl).mean() / 2
    return total


def exact(models: Models, loss: GRPOLoss) -> dict[str, float]:
    """All figures by enumeration of the draws of both responses."""
    parameters, cells = list(models.policy.parameters()), []
    both = [laws(models, row) for row in GROUP.responses]
    for cell in itertools.product(*both):
        value = by_hand(loss, [values for _, values in cell])
        slope = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        cells.append((math.prod(p for p, _ in cell), float(value.detach()), slope))
    chance, value = (torch.tensor([cell[i] for cell in cells]) for i in (0, 1))
    gradient = torch.stack([cell[2] for cell in cells])
    means = [[sum(p * values[i] for p, values in law).detach() for i in range(3)] for law in both]
    log_ratio = []
    for law in both:
        p = torch.tensor([p for p, _ in law])
        x = torch.stack([(values[0] - values[1]).detach().sum() / 2 for _, values in law])
        log_ratio.append(float(p @ (x - p @ x) ** 2))
    mean = chance @ gradient
    return {
        "log_ratio": sum(log_ratio) / 2,
        "loss": float(chance @ (value - chance @ value) ** 2),
        "gradient": float(chance @ ((gradient - mean) ** 2).sum(1)),
        "bias": float(chance @ value) - float(by_hand(loss, means)),
        "value": float(chance @ value),
        "signal": float(mean @ mean),
    }


def candidate(loss: GRPOLoss, budget: int = 1, name: str = "fixedcount", **more) -> Candidate:
    how = BoundEstimator(name, budget, eps=0.0, of_tokens=loss.ratio == "token")
    return Candidate(name, how, loss, budget, **more)


@pytest.mark.statistical
@pytest.mark.parametrize("name", LOSSES)
def test_every_figure_by_enumeration(models, name):
    """A group under 14 numbers, 9 repeats each: the error of a mean is that over the numbers."""
    loss = LOSSES[name]
    (found,) = measure_groups(models, [GROUP] * 14, [candidate(loss)], candidate(loss, 2), repeats=9)
    for quantity, truth in exact(models, loss).items():
        estimate = found.mean(quantity)
        slack = 0.03 * abs(truth) if quantity == "bias" else 0.0  # what the jackknife leaves
        assert abs(estimate.value - truth) < 4.5 * estimate.stderr + slack, (quantity, estimate, truth)
        if quantity in ("log_ratio", "gradient"):
            assert estimate.stderr < 0.5 * truth, quantity
    offset = found.mean("offset")
    assert abs(offset.value) < 4.5 * offset.stderr, "an estimate of the bound without bias"


def test_with_the_old_policy_itself_every_ratio_is_one(models):
    loss = GRPOLoss("mean")
    apart = candidate(loss, 2, shared=False)
    shared, other = measure_groups(Models(models.policy), [GROUP] * 3, [candidate(loss, 2), apart], candidate(loss, 4))
    for quantity in ("log_ratio", "loss", "bias"):
        assert getattr(shared, quantity).abs().max() < 1e-20
    assert (shared.gradient > 0).all()
    assert (other.log_ratio > 0).all(), "an old policy with draws of its own has a ratio of its own"


class Scaled:
    """Values of another bound: three times the fixed counts' of one draw, so that the mean gradient is three times."""

    of_tokens = False

    def draw(self, model, responses, numbers, *, seed, step=0):
        return _ScaledDraws(
            BoundEstimator("fixedcount", 1, eps=0.0).draw(model, responses, numbers, seed=seed, step=step)
        )


class _ScaledDraws:
    scored = None

    def __init__(self, draws):
        self.draws, self.tokens, self.passes = draws, draws.tokens, draws.passes

    def values(self, model):
        return 3 * self.draws.values(model)

    def parts(self, model, slopes):
        return self.draws.parts(model, 3 * slopes)


@pytest.mark.statistical
def test_another_mean_is_told_by_offset_direction_and_size(models):
    loss = GRPOLoss("mean")
    other = Candidate("scaled", Scaled(), loss, 1, of_bound=False)
    standard, scaled = measure_groups(
        Models(models.policy), [GROUP] * 12, [candidate(loss), other], candidate(loss, 16), repeats=12
    )
    cosine, size = scaled.direction()
    assert abs(size.value - 3) < 4.5 * size.stderr + 0.1
    assert cosine.value == pytest.approx(1, abs=0.15)
    assert scaled.mean("offset").value < -0.5, "three times a negative log-likelihood"
    # By its own mean it is as noisy as the standard; its bare variance is nine times as large.
    assert scaled.over(standard, "gradient").value == pytest.approx(1, rel=0.4)
    assert float(scaled.gradient.mean() / standard.gradient.mean()) == pytest.approx(9, rel=1e-6)


def test_the_gradient_noise_of_another_mean_is_in_proportion_to_it_whichever_is_divided_by_which():
    def noise(variance, signal, of_bound):
        columns = dict.fromkeys(("log_ratio", "loss", "bias", "value", "offset", "along"), torch.ones(4).double())
        each = {"gradient": variance, "signal": signal, "exact": 2.0}
        columns |= {name: torch.full((4,), value).double() for name, value in each.items()}
        return GroupNoise("x", 3, **columns, of_bound=of_bound)

    bound, thrice, half = noise(6.0, 99.0, True), noise(36.0, 18.0, False), noise(3.0, 0.5, False)
    assert thrice.over(bound, "gradient").value == pytest.approx((36 / 18) / (6 / 2))
    assert bound.over(thrice, "gradient").value == pytest.approx((6 / 2) / (36 / 18))
    assert half.over(thrice, "gradient").value == pytest.approx((3 / 0.5) / (36 / 18))
    assert half.over(thrice, "loss").value == pytest.approx(1)


def test_models_are_left_as_they_were(models):
    policy = tiny(0).train()
    done = []
    measure_groups(
        Models(policy), [GROUP], [candidate(GRPOLoss())], candidate(GRPOLoss()), repeats=2, progress=done.append
    )
    assert policy.training
    assert all(p.grad is None for p in policy.parameters())
    assert done == [1, 1]


def test_chosen_parameters_are_a_part_of_all(models):
    group = Group(ROWS, torch.tensor([1.0, 0.5, -1.5]))
    whole, part = (
        measure_groups(models, [group], [candidate(GRPOLoss())], candidate(GRPOLoss()), repeats=3, parameters=which)[0]
        for which in (None, ["blocks.*"])
    )
    assert (part.gradient < whole.gradient).all()
    assert torch.equal(part.log_ratio, whole.log_ratio)


def test_refusals(models):
    for groups, repeats in (([], 4), ([GROUP], 1)):
        with pytest.raises(UserError, match="expected responses and at least 2 repeats"):
            measure_groups(models, groups, [], candidate(GRPOLoss()), repeats=repeats)


def test_the_json_form_has_no_nan_but_null():
    one = torch.ones(2, dtype=torch.float64)
    found = GroupNoise("x", 2, *[one] * 9).as_dict()
    assert found["direction"]["value"] == 1.0
    assert found["direction"]["stderr"] is None, "too few prompts for the jackknife"
    assert found["of_bound"]
