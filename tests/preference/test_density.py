"""The density of t for preferences against enumeration: unbiased under any p, and of least variance under its own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.density import norm_profile
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.lab.measure.options import ProbeOptions
from stabledllm.lab.pair_density import PairProbe, without_density
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.sources import LowDiscrepancy
from stabledllm.ppots.moments import LossMoments
from stabledllm.preference.density import DifferenceMeter, DifferenceProfile, responses_of, slopes_of, weighed
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from tests.checks.statistics import assert_mean, assert_variance
from tests.float64 import default_float64  # noqa: F401
from tests.preference.test_draws import tiny

BETA, EPS = 0.5, 0.1
OBJECTIVE = Objective(eps=EPS)
PAIRS = [
    Pair(TokenRow([3, 1, 4, 1, 5], prompt_length=2), TokenRow([3, 1, 7, 7], prompt_length=2)),
    Pair(TokenRow([2, 7, 1, 8], prompt_length=1), TokenRow([2, 6, 6], prompt_length=1)),
    Pair(TokenRow([5, 5, 1], prompt_length=1), TokenRow([5, 8, 2, 2], prompt_length=1)),
    Pair(TokenRow([6, 2, 8, 3], prompt_length=1), TokenRow([6, 1, 1, 4], prompt_length=1)),
]
T = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
"""Ratios of t over which moments are integrated; every density here is constant on cells of 1/40 or wider."""


@pytest.fixture(scope="module")
def models():
    """A policy that has moved from its reference in what it makes of one token, most where little is masked."""
    policy, reference = tiny(0), tiny(0)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return policy, reference


def moments(policy, reference, row: TokenRow) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square of the difference of the bounds over all masks at every t, independent masks; both (T,).

    Without a reference those of the policy's bound alone.
    """
    ids, places, size = torch.tensor(row.input_ids), range(row.prompt_length, len(row)), row.response_length
    q = (1 - EPS) * T + EPS
    mean, square = torch.zeros_like(T), torch.zeros_like(T)
    for k in range(1, size + 1):
        for masked in map(list, itertools.combinations(places, k)):
            noisy = ids.clone()
            noisy[masked] = 9
            ours, theirs = (
                float(F.cross_entropy(model(noisy[None]).logits[0, masked], ids[masked], reduction="sum").detach())
                if model
                else 0.0
                for model in (policy, reference)
            )
            chance, d = q**k * (1 - q) ** (size - k), (theirs - ours) / q
            mean, square = mean + chance * d, square + chance * d**2
    return mean, square


def variance(of_responses, density, draws: int) -> float:
    """Of the margin, by the formula of docs/preferences.md, the density at T."""
    p = density.log_prob(T).exp()
    return BETA**2 / draws * sum(float((square / p).mean() - mean.mean() ** 2) for mean, square in of_responses)


def on_cells(values: torch.Tensor) -> Tabulated:
    """The density that is proportional to values at T, made constant on 40 cells."""
    return Tabulated(values.view(40, -1).mean(1))


@pytest.fixture(scope="module")
def laws(models):
    """By pair the moments of its two responses, and the densities to compare."""
    by_pair = [[moments(*models, row) for row in (pair.chosen, pair.rejected)] for pair in PAIRS]
    square = sum(square for pair in by_pair for _, square in pair)
    losses = sum(moments(models[0], None, row)[1] for pair in PAIRS for row in (pair.chosen, pair.rejected))
    best = on_cells(square.sqrt())
    densities = {
        "best": best,
        "uniform": Uniform(),
        "of the loss": on_cells(losses.sqrt()),
        "steeper": Tabulated(best.density**2),
        "turned": Tabulated(best.density.flip(0)),
    }
    return by_pair, densities


def test_the_root_of_the_second_moment_of_the_difference_has_the_least_variance(laws):
    by_pair, densities = laws
    found = {name: sum(variance(pair, p, 4) for pair in by_pair) for name, p in densities.items()}
    least = found.pop("best")
    assert all(other > 1.02 * least for other in found.values()), (least, found)


@pytest.mark.statistical
@pytest.mark.parametrize("which", ["best", "of the loss"])
def test_mean_and_variance_of_the_margin_under_a_density(models, laws, which):
    """The mean is that of all masks whatever p, and the variance the formula's."""
    by_pair, densities = laws
    density, pair, n = densities[which], 0, 2000
    how = BoundEstimator("ppots", 4, density=density, eps=EPS, tokens_per_batch=10**6)
    draws = how.draw(models[0], [PAIRS[pair]] * n, range(n), seed=5)
    values = [draws.values(model) for model in models]
    margins = DPOLoss(BETA)(*values, draws.tokens).margin
    (chosen, _), (rejected, _) = by_pair[pair]
    assert_mean(margins, BETA * float(chosen.mean() - rejected.mean()), which)
    assert_variance(margins, variance(by_pair[pair], density, 4), which)


def loaded(model, name: str):
    return MeteredModel(model, mask_id=9, pad_id=0, name=name)


def fitted(models, method: str, seed: int = 0, budget: int = 4, pairs=PAIRS, **options):
    sizes = {"rows": 64, "rates": 8, "masks": 24, "family": "tabulated", "design": "grid"} | options
    found = PairProbe(
        loaded(models[0], "policy"), loaded(models[1], "reference"), DPOLoss(BETA), budget, ProbeOptions(**sizes), seed
    )
    return found.fit(Method.parse(method, objective=OBJECTIVE), pairs)


def test_the_fit_finds_nearly_the_best_density(models, laws):
    """All pairs weigh about the same here: the slopes of small margins are."""
    by_pair, densities = laws
    density = fitted(models, "ppots")
    compared = (density.sampler, densities["best"], densities["uniform"])
    total = [sum(variance(pair, p, 4) for pair in by_pair) for p in compared]
    assert total[0] < total[1] + 0.3 * (total[2] - total[1])
    record = density.record
    assert (record["signal"], record["objective_kind"], record["config"]["pairs"]) == ("difference", "dpo", 4)
    assert record["diagnostics"]["variance_uniform"]["unit"] == "nats²"
    assert density.forward_passes == 2 * 8 * 24 * (len(record["profile"]["t"]))
    assert "E|policy less reference|²" in density.summary()


def test_a_policy_that_has_not_moved_is_refused(models):
    with pytest.raises(UserError, match="found no difference on any mask; fit p\\(t\\) to a run that has learnt"):
        fitted((models[1], models[1]), "ppots")
    with pytest.raises(UserError, match="expected at least 2 pairs to probe, found 1"):
        fitted(models, "ppots", pairs=PAIRS[:1])


@pytest.mark.parametrize("method", ["ppots-gradient", "ppots-head"])
def test_the_gradient_needs_no_difference(models, method):
    """What a draw adds to the gradient is the policy's alone, so that it can be fitted where both are alike."""
    density = fitted((models[1], models[1]), method, masks=4)
    assert density.signal == ("gradient" if method == "ppots-gradient" else "output layer")
    assert density.sampler.density.std() > 0.05


def test_slopes_are_derivatives_of_the_loss():
    generator = torch.Generator().manual_seed(3)
    policy, reference = (torch.randn(2, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens, loss, step = torch.tensor([[4, 5], [2, 3]]), DPOLoss(0.7, sft=0.2), 1e-6
    slopes = slopes_of(loss, policy, reference, tokens)
    for pair, response, model in itertools.product(range(2), range(2), range(2)):
        moved = [policy.clone(), reference.clone()]
        moved[model][pair, response] += step
        change = loss(*moved, tokens).value[pair] - loss(policy, reference, tokens).value[pair]
        assert float(slopes[pair, response, model]) == pytest.approx(float(change) / step, rel=1e-4, abs=1e-9)
    assert torch.equal(slopes[:, 1, 0], -slopes[:, 1, 1]), "without sft the reference's is the policy's, turned"


class OfOne:
    """A meter whose losses are t times a factor."""

    objective = OBJECTIVE

    def __init__(self, factor: float):
        self.rows, self.factor = responses_of(PAIRS[:2]), factor

    def sizes(self, method):
        return torch.tensor([row.response_length for row in self.rows])

    def view_losses(self, row, t, method, key):
        return (self.factor * t)[:, None], torch.ones(len(t), 1, dtype=torch.bool)


def test_a_draw_adds_the_slopes_times_the_bounds_of_its_own_response():
    """A bound is less the loss per token times the tokens: 3, 2, 3 and 2 of them; the slopes of pairs differ."""
    slopes = torch.tensor([[-0.2, 0.2], [0.2, -0.2], [-0.01, 0.04], [0.04, -0.04]])
    found, _ = DifferenceMeter(OfOne(5.0), OfOne(1.0), slopes).view_losses(
        torch.tensor([3, 0, 1, 2]), torch.tensor([0.5, 0.5, 1.0, 1.0]), Method(), None
    )
    expected = [-2 * 0.5 * (0.04 * 5 - 0.04), 3 * 0.5 * (0.2 * 5 - 0.2), -2 * (0.2 * 5 - 0.2), 3 * (0.01 * 5 - 0.04)]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))


def test_the_norms_of_a_response_are_weighed_by_its_own_factor(models):
    rows, factors = responses_of(PAIRS[:2]), torch.tensor([1.0, 3.0, 0.5, 2.0])

    def moments_of(each):
        meter = weighed(OutputLayerNorms, each)(loaded(models[0], "policy"), rows, OBJECTIVE)
        return norm_profile(
            meter, Method.parse("ppots-head", objective=OBJECTIVE), rows=4, rates=4, masks=2, seed=0
        ).moments

    plain, heavy = moments_of(torch.ones(4)), moments_of(factors)
    torch.testing.assert_close(heavy.moment, plain.moment * factors[plain.points.rows][:, None] ** 2)
    order = plain.points.rows.argsort()
    assert order.tolist() != [0, 1, 2, 3]
    sorted_, everyone = plain.in_order(order, together=2), torch.arange(4)
    assert sorted_.points.rows.tolist() == [0, 1, 2, 3]
    under = Tabulated([0.5, 1.5])
    torch.testing.assert_close(sorted_.integrated(under, everyone), plain.integrated(under, everyone)[order])


@pytest.mark.parametrize("method", ["ppots", "ppots-head"])
def test_a_pair_is_never_judged_by_a_density_that_its_other_response_was_fitted_to(models, method):
    """Eight responses in five folds would part the last pair; errors are over the four pairs."""
    density = fitted(models, method, rates=4, masks=2)
    folds = [rows.tolist() for _, rows in density.crossfit]
    assert folds == [[0, 1], [2, 3], [4, 5], [6, 7]]
    diagnostics = density.record["diagnostics"]
    assert {diagnostics[name]["n"] for name in ("variance_uniform", "variance_fitted", "change")} == {4}


def test_a_lattice_takes_a_responses_own_curve_out():
    """Responses whose curves differ but have no noise of masks: 16 points of a lattice average nearly all of it out."""
    edges = torch.linspace(0, 1, 9).double()
    middle = (edges[1:] + edges[:-1]) / 2
    curves = torch.stack([a * middle for a in (0.5, 1.0, -2.0, 3.0)])
    noise = 0.02 * torch.ones(4, 8) * (1.1 - middle)
    losses = LossMoments(
        edges=edges, moment=curves**2 + noise, mean=curves, noise=noise, masks=10_000, cost=torch.ones(8)
    )

    class Probed:
        rows, moments = torch.arange(4), losses

    independent = DifferenceProfile(Probed()).moments
    spread = DifferenceProfile(Probed(), LowDiscrepancy(), points=16).moments
    torch.testing.assert_close(independent.moment, losses.moment)
    assert (spread.moment.mean(0) < 0.2 * losses.moment.mean(0))[-1]
    assert float(spread.moment.mean(0)[0]) > 0.9 * float(noise[0, 0])


def test_draws_one_by_one_are_those_of_the_replicates(models):
    how = BoundEstimator("lowdisc+ppots+fixedcount", 4, density=Tabulated([0.5, 1.5]), eps=EPS, tokens_per_batch=12)
    draws = how.draw(models[0], PAIRS, range(4), seed=2)
    each = draws.each().values(models[0])
    assert each.shape == (4, 2, 4)
    torch.testing.assert_close(each.unflatten(2, (2, 2)).mean(3), draws.values(models[0]), rtol=1e-12, atol=1e-12)
    t, weight = draws.ratios()
    alone = how.draw(models[0], PAIRS[1:2], [1], seed=2).ratios()
    for whole, one in zip((t, weight), alone, strict=True):
        assert torch.equal(whole[1:2], one)
    # Two of three tokens of a rejected response: the count k = 2 has the mass (1/3 .. 2/3) of the density.
    k = torch.ceil(t[0, 1] * 2)
    mass = torch.where(k == 1, 0.25, 0.75)
    torch.testing.assert_close(weight[0, 1], 1 / (2 * mass))
    assert math.isclose(float(t.mean()), 0.6, abs_tol=0.15)


def test_names():
    assert without_density("lowdisc+ppots-gradient+fixedcount") == "lowdisc+fixedcount"
    assert without_density("adaptive") == "standard"
