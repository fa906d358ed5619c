"""Predicted variances against exact values and against simulation through the library's own sources."""

from __future__ import annotations

import math

import pytest
import torch

from stabledllm.noise.densities import Clipped, Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.noise.streams import Key
from stabledllm.ppots.profile import probe, rate_edges
from stabledllm.stats.estimate import Estimate
from stabledllm.variance.components import decompose, nested_losses
from stabledllm.variance.predicted import at_equal_compute, per_row_variance
from tests.checks.statistics import assert_agree, assert_mean, assert_variance
from tests.fakes.laws import Law, linear_law
from tests.fakes.meters import FakeMeter, TableMeter
from tests.fakes.profiles import exact_profile

LAW = linear_law()
EVERY = torch.arange(100)
HALVES = Tabulated([0.5, 1.5])


def predicted(source, n: int, sampler=None, rates: int = 20, law: Law = LAW) -> float:
    return per_row_variance(exact_profile(law, rates=rates).moments, source, [(sampler or Uniform(), EVERY)], n).value


def exact_iid(sampler) -> float:
    """One row's variance: E[l^2 w^2] - (E l w)^2."""
    if sampler is HALVES:
        second = LAW.integral(LAW.second_moment, 0, 0.5) / 0.5 + LAW.integral(LAW.second_moment, 0.5, 1) / 1.5
        return second - LAW.mean**2
    if isinstance(sampler, Clipped):
        width = sampler.high - sampler.low
        mean = LAW.integral(LAW.h, sampler.low, sampler.high) / width
        return LAW.integral(LAW.second_moment, sampler.low, sampler.high) / width - mean**2
    return LAW.total


def test_iid_is_a_plus_b_plus_c():
    assert predicted(IID(), 16) == pytest.approx(LAW.total, rel=2e-3)
    assert predicted(IID(), 16, rates=80) == pytest.approx(LAW.total, rel=2e-4)


@pytest.mark.parametrize("sampler", [HALVES, Clipped(0.3, 0.8)], ids=["tabulated", "clipped"])
def test_iid_under_another_density(sampler):
    assert predicted(IID(), 16, sampler) == pytest.approx(exact_iid(sampler), rel=2e-3)
    assert abs(exact_iid(sampler) - LAW.total) > 0.1 * LAW.total


@pytest.mark.parametrize(("n", "strata"), [(16, None), (10, None), (16, 4), (17, 4), (6, 8), (9, 1), (7, 7), (1, None)])
def test_strata_remove_their_share_of_linear_g(n, strata):
    """h = h0 + h1 u: strata leave h1^2/12/k^2 within them, and n mod k extra points a simple random sample of them."""
    k = strata or math.ceil(n**0.5)
    between = LAW.h_variance * (1 - 1 / k**2)
    extra = n % k
    left = extra * (1 - extra / k) / n * between * k / (k - 1) if extra else 0.0
    removed = predicted(IID(), n) - predicted(Stratified(strata), n)
    assert removed == pytest.approx(between - left, rel=0.015, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_low_discrepancy_leaves_only_the_variance_of_its_offset(n):
    """The lattice's mean of u is its offset's: variance 1 / 12 n^2, so n Var is h1^2 / 12 n."""
    removed = predicted(IID(), n) - predicted(LowDiscrepancy(), n)
    assert removed == pytest.approx(LAW.h_variance * (1 - 1 / n), rel=0.015, abs=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [Uniform(), HALVES, Clipped(0.3, 0.8)], ids=["uniform", "tabulated", "clipped"])
@pytest.mark.parametrize(
    ("source", "n"),
    [(IID(), 6), (Stratified(), 9), (Stratified(4), 10), (Stratified(3), 8), (LowDiscrepancy(), 8)],
    ids=["iid", "divisible", "remainder-2", "remainder-2-of-3", "lowdisc"],
)
def test_against_simulated_steps(source, n, sampler):
    """Steps of n rows: u from the library's source, x and z from torch. Tighter once x and z are integrated out."""
    law, steps = LAW, 400
    generator = torch.Generator().manual_seed(5)
    u = torch.stack([source.uniforms(Key(11, s), n, torch.device("cpu")) for s in range(steps)])
    t = sampler.icdf(u)
    h = law.h(t) * sampler.weight(t)
    normal = torch.randn(2, 10, steps, n, generator=generator, dtype=torch.float64)
    losses = h * (1 + law.tau2**0.5 * normal[0]) + law.sd(t) * sampler.weight(t) * normal[1]
    found = predicted(source, n, sampler)
    each = (losses.mean(-1) - h.mean(-1)) * n**0.5
    of_h = float(h.mean(-1).var() * n)
    # Given u, x and z are independent of each other and over rows: the exact conditional part, then that of h alone.
    noise = float((losses - h).square().mean())
    assert noise + of_h == pytest.approx(found, rel=0.08)
    left = found - exact_iid(sampler) + float(h.var(correction=0))
    assert_variance(h.mean(-1) * n**0.5, left, "n Var of the mean of g")
    assert_variance((losses[0].mean(-1)) * n**0.5, found, "n Var of the step loss")
    assert_mean(each.flatten(), 0.0)


@pytest.mark.statistical
def test_bernoulli_probe_against_enumeration():
    """The whole path from masks: the true variance is a sum over masks and a quadrature over t."""
    meter = TableMeter(3)
    exact = meter.exact(rate_edges(20))
    profile = probe(meter, Method.parse("standard"), rows=1500, rates=40, masks=4, seed=2)
    found = per_row_variance(profile.moments, IID(), [(Uniform(), torch.arange(1500))], 8)
    truth = exact["second"] - exact["mean"] ** 2
    assert found.stderr < 0.04 * truth
    # A midpoint misses about 4 % of the 1/p tail in each octave.
    assert abs(found.value - truth) < 4.26 * found.stderr + 0.04 * truth


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [Uniform(), HALVES], ids=["uniform", "tabulated"])
@pytest.mark.parametrize(
    "source", [Stratified(), Stratified(3), LowDiscrepancy()], ids=["strats", "strats3", "lowdisc"]
)
def test_what_a_source_removes_is_unbiased_in_small_probes(source, sampler):
    """8 rows, little B: the noise of the probe's own mean must not be taken for noise that the source removes."""
    law, n, a = linear_law(tau2=0.5, h1=0.3), 10, 8
    profile = probe(FakeMeter(law), Method.parse("standard"), rows=a * 160, rates=6, masks=2, seed=4)
    exact = predicted(IID(), n, sampler, 6, law) - predicted(source, n, sampler, 6, law)
    assert_mean(removed_in_parts(profile, a, source, sampler, n), exact)


def removed_in_parts(profile, rows: int, source, sampler, n: int) -> torch.Tensor:
    """What the source removes, estimated from each ``rows`` rows of the profile alone."""
    crossfit = [(sampler, torch.arange(rows))]
    parts = [profile.moments.select(keep) for keep in torch.arange(len(profile.rows)).split(rows)]
    found = [[per_row_variance(p, s, crossfit, n).value for s in (IID(), source)] for p in parts]
    return -torch.tensor(found, dtype=torch.float64).diff(dim=1).flatten()


@pytest.mark.statistical
def test_error_is_near_the_true_one():
    """Many small probes: the jackknife error against the spread of the predictions, for each source."""
    profile = probe(FakeMeter(LAW), Method.parse("standard"), rows=16 * 60, rates=6, masks=2, seed=1)
    for source in (IID(), Stratified(), LowDiscrepancy()):
        found = [
            per_row_variance(profile.moments.select(keep), source, [(Uniform(), torch.arange(16))], 8)
            for keep in torch.arange(16 * 60).split(16)
        ]
        values = torch.tensor([f.value for f in found])
        claimed = torch.tensor([f.stderr for f in found]).square().mean() ** 0.5
        assert 0.7 < float(claimed / values.std()) < 1.4, source.name


def test_cross_fitted_densities_count_on_their_own_rows_only():
    """Rows of each fold weigh in by their number: equal densities in folds are one density."""
    profile = exact_profile(LAW)
    folds = [(HALVES, EVERY[:30]), (HALVES, EVERY[30:])]
    for source in (IID(), Stratified(4), LowDiscrepancy()):
        one = per_row_variance(profile.moments, source, [(HALVES, EVERY)], 8)
        two = per_row_variance(profile.moments, source, folds, 8)
        assert two.value == pytest.approx(one.value)
        assert two.stderr == pytest.approx(one.stderr)
    mixed = per_row_variance(profile.moments, IID(), [(HALVES, EVERY[::2]), (Uniform(), EVERY[1::2])], 8)
    low, high = sorted((exact_iid(HALVES), exact_iid(Uniform())))
    assert low < mixed.value < high


def test_mean_forwards_of_a_row():
    for text, below, sampler, expected in (
        ("standard", 1.0, Uniform(), 1.0),
        ("multisample3", 1.0, HALVES, 3.0),
        ("mirror", 1.0, Uniform(), 2.0),
        ("mirror", 0.5, Uniform(), 1.5),
        ("mirror", 0.5, HALVES, 1.25),
        ("mirror", 0.5, Clipped(0.3, 0.8), 1.4),
    ):
        method = Method.parse(text, MethodOptions(mirror_below=below))
        assert method.views.mean_forwards(sampler, torch.tensor([8])) == pytest.approx(expected, rel=1e-9)


def test_standard_at_equal_compute_is_a_plus_b():
    data = Estimate(value=LAW.data, stderr=0.3, n=10)
    found = at_equal_compute(Estimate(value=LAW.total, stderr=0.4, n=10), 1.0, data)
    assert found.value == pytest.approx(LAW.pattern + LAW.rate)
    assert found.stderr == pytest.approx(0.5)
    assert at_equal_compute(Estimate(value=1.0, stderr=0.4, n=10), 2.0, data).stderr == pytest.approx(
        (0.64 + 0.09) ** 0.5
    )


@pytest.mark.statistical
def test_estimated_standard_at_equal_compute_is_a_plus_b():
    meter, standard = FakeMeter(LAW), Method.parse("standard")
    nested = nested_losses(meter, standard, rows=150, rates=10, masks=4, seed=3)
    profile = probe(meter, standard, rows=150, rates=10, masks=4, seed=4)
    found = at_equal_compute(
        per_row_variance(profile.moments, IID(), [(Uniform(), torch.arange(150))], 8),
        1.0,
        decompose(nested).data,
    )
    assert_agree(found, Estimate(value=LAW.pattern + LAW.rate, stderr=0.0, n=1))


@pytest.mark.parametrize("views", [2, 8, 64])
def test_many_identical_views_of_a_row_cannot_game_it(views):
    """K equal views change nothing of the variance: the method pays K (A + B) + (K - 1) C."""
    data = Estimate(value=LAW.data, stderr=0.0, n=10)
    same = at_equal_compute(Estimate(value=LAW.total, stderr=0.0, n=10), views, data).value
    assert same == pytest.approx(views * (LAW.pattern + LAW.rate) + (views - 1) * LAW.data)
    # Even views that remove all noise but that of the data pay (K - 1) C for the rows they displace.
    free = at_equal_compute(Estimate(value=LAW.data, stderr=0.0, n=10), views, data).value
    assert free == pytest.approx((views - 1) * LAW.data)


def test_identical_views_through_a_meter():
    """A correlation of 1 between the views is the same view twice."""
    law = linear_law(rho=1.0)
    two = probe(FakeMeter(law), Method.parse("mirror"), rows=50, rates=6, masks=3, seed=0)
    one = probe(FakeMeter(law), Method.parse("standard"), rows=50, rates=6, masks=3, seed=0)
    every = [(Uniform(), torch.arange(50))]
    a, b = (per_row_variance(p.moments, IID(), every, 8).value for p in (two, one))
    assert a == pytest.approx(b)
