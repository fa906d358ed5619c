"""Measured steps: unbiased, of the right variance, and as predicted."""

from __future__ import annotations

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.ppots.profile import probe, rate_edges
from stabledllm.variance.drawn import Measured, measure, step_rows, variance_covariance
from stabledllm.variance.predicted import per_row_variance
from tests.checks.statistics import Z, assert_agree, assert_mean, assert_variance
from tests.fakes.laws import linear_law
from tests.fakes.meters import FakeMeter, TableMeter
from tests.fakes.profiles import exact_profile

LAW = linear_law()
HALVES = Tabulated([0.5, 1.5])


@pytest.fixture(scope="module")
def tiny() -> LossMeter:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    model = TinyMDM(TinyMDMConfig(**shape, initializer_range=0.3)).double()
    generator = torch.Generator().manual_seed(1)
    rows = [TokenRow(torch.randint(0, 256, (9 + i % 4,), generator=generator).tolist(), 3) for i in range(60)]
    return LossMeter(MeteredModel(model, 256, 257), rows, Objective(eps=0.02), tokens_per_batch=16384)


def truth(source: str, n: int, sampler) -> float:
    profile = exact_profile(LAW, rates=40)
    return per_row_variance(profile.moments, Method.parse(source).source, [(sampler, torch.arange(100))], n).value


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [Uniform(), HALVES], ids=["uniform", "tabulated"])
@pytest.mark.parametrize("name", ["standard", "strats", "lowdisc"])
def test_mean_and_variance_of_steps_of_known_law(name, sampler):
    found = measure(FakeMeter(LAW), Method.parse(name), sampler, rows=10, steps=700, seed=4)
    assert_mean(found.row_losses.mean(1), LAW.mean, "mean")
    assert found.mean.value == pytest.approx(float(found.row_losses.mean()))
    expected = truth(name, 10, sampler)
    variance = found.per_row_variance
    assert abs(variance.value - expected) <= Z * variance.stderr
    assert variance.stderr < (0.035 if name == "standard" else 0.07) * expected
    assert_variance(found.row_losses.mean(1) * 10**0.5, expected, "n Var of the step loss")
    assert found.independent_rows == (name == "standard")
    assert found.cost == 1.0
    assert variance.n == (7000 if name == "standard" else 700)


def test_sources_leave_different_variances():
    """The measurement can tell them apart: that of lowdisc or strats is not that of iid."""
    of = {
        name: measure(
            FakeMeter(linear_law(s0=0.5, s1=0.0, tau2=0.05)), Method.parse(name), Uniform(), rows=16, steps=400, seed=1
        )
        for name in ("standard", "strats", "lowdisc")
    }
    iid = of["standard"].per_row_variance
    for name in ("strats", "lowdisc"):
        other = of[name].per_row_variance
        assert other.value + Z * other.stderr < iid.value - Z * iid.stderr


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["standard", "fixedcount", "mirror", "multisample3"])
def test_real_masks_have_the_enumerated_mean(name):
    # At eps = 1e-3 the fourth moment, about 1 / eps^2, is beyond any sample, and so is the variance's error.
    meter = TableMeter(3, eps=0.05)
    exact = meter.exact(rate_edges(6, 0.05))
    found = measure(meter, Method.parse(name), Uniform(), rows=10, steps=1000, seed=2)
    assert abs(found.mean.value - exact["mean"]) <= Z * found.mean.stderr
    assert found.mean.stderr < 0.02 * exact["mean"]
    assert found.cost == Method.parse(name).views.count
    variance, expected = found.per_row_variance, exact["second"] - exact["mean"] ** 2
    if name == "standard":
        assert abs(variance.value - expected) <= Z * variance.stderr
    else:
        assert variance.value + Z * variance.stderr < expected


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("standard", Uniform()),
        ("strats", Uniform()),
        ("mirror", Uniform()),
        ("mirror", HALVES),
        ("lowdisc+mirror", Uniform()),
        ("multisample3", Uniform()),
        ("fixedcount", Uniform()),
        ("fixedcount+mirror", HALVES),
    ],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_measured_agrees_with_predicted_on_a_model(tiny, name, sampler):
    method = Method.parse(name, objective=tiny.objective)
    # Many rates: fixedcount's loss is a step function of t.
    profile = probe(tiny, method, rows=60, rates=24, masks=2, seed=5)
    every = [(sampler, torch.arange(len(profile.rows)))]
    found = measure(tiny, method, sampler, rows=8, steps=200, seed=6)
    expected = per_row_variance(profile.moments, method.source, every, 8)
    assert_agree(found.per_row_variance, expected, name)
    assert found.cost == pytest.approx(method.views.mean_forwards(sampler, torch.tensor([9])))
    assert found.per_row_variance.value > 0


@pytest.mark.statistical
@pytest.mark.parametrize(("rho", "name"), [(-0.8, "mirror"), (0.0, "multisample"), (0.6, "mirror")])
def test_views_of_known_correlation(rho, name):
    law = linear_law(rho=rho)
    expected = law.pattern * (1 + rho) / 2 + law.rate + law.data
    found = measure(FakeMeter(law), Method.parse(name), Uniform(), rows=10, steps=800, seed=1)
    variance = found.per_row_variance
    assert abs(variance.value - expected) <= Z * variance.stderr
    assert variance.stderr < 0.03 * expected
    profile = probe(FakeMeter(law), Method.parse(name), rows=300, rates=20, masks=4, seed=2)
    guess = per_row_variance(profile.moments, Method.parse(name).source, [(Uniform(), torch.arange(300))], 10)
    assert_agree(variance, guess)


def test_cost_counts_the_views_that_ran():
    method = Method.parse("mirror", MethodOptions(mirror_below=0.25))
    found = measure(FakeMeter(LAW), method, Uniform(), rows=20, steps=200, seed=0)
    assert found.cost == pytest.approx(1.25, abs=0.03)
    assert step_rows(method, 32) == 16
    assert step_rows(method, 32, 1.25) == 26
    assert step_rows(Method.parse("multisample64"), 32) == 1
    assert step_rows(Method.parse("standard"), 32) == 32


def test_estimates_by_hand():
    losses = torch.tensor([[1.0, 3.0], [2.0, 6.0], [5.0, 7.0]], dtype=torch.float64)
    dependent, independent = Measured(losses, False, 1.0), Measured(losses, True, 1.0)
    # Step means 2, 4, 6; row losses of mean 4 and squares about it 9 + 1 + 4 + 4 + 1 + 9.
    assert dependent.mean.value == 4.0
    assert dependent.mean.stderr == pytest.approx(2 / 3**0.5)
    assert dependent.per_row_variance.value == pytest.approx(2 * 4.0)
    assert independent.per_row_variance.value == pytest.approx(28 / 5)
    squares = torch.tensor([9.0, 1, 4, 4, 1, 9])
    assert independent.per_row_variance.stderr == pytest.approx(float(squares.std()) / 6**0.5)


def test_covariance_of_two_variances_by_hand():
    losses = torch.tensor([[1.0, 3.0], [2.0, 6.0], [5.0, 7.0]], dtype=torch.float64)
    rows, steps = Measured(losses, True, 1.0), Measured(losses, False, 1.0)
    # Squares less their mean: of rows 28 / 6 less 9 1 4 4 1 9, of steps 2 x (4 0 4) less their mean 16 / 3.
    of_rows = torch.tensor([[9.0, 1], [4, 4], [1, 9]], dtype=torch.float64) - 28 / 6
    of_steps = torch.tensor([8.0, 0, 8], dtype=torch.float64) - 16 / 3
    assert variance_covariance(rows, rows) == pytest.approx(float(of_rows.square().sum()) / 36)
    assert variance_covariance(steps, steps) == pytest.approx(float(of_steps.square().sum()) / 9)
    assert variance_covariance(rows, steps) == pytest.approx(float(of_rows.mean(1) @ of_steps) / 9)
    # Two steps of 3 and three of 2 of the same data rows: all evaluations, and places 1 and 2 of the second step.
    wide = Measured(losses.view(2, 3), True, 1.0)
    same_u = float(of_rows[1] @ of_rows.view(2, 3)[1, :2])
    assert variance_covariance(rows, wide) == pytest.approx((float(of_rows.square().sum()) + same_u) / 36)
    assert variance_covariance(steps, wide) == 0.0


def test_reproducible_and_seeded():
    one, again, other = (
        measure(FakeMeter(LAW), Method.parse("strats"), Uniform(), rows=4, steps=6, seed=s).row_losses
        for s in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (6, 4)
    assert len(one.unique()) == 24
