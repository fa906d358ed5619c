"""A 2 % error in any weight and a 10 % error in any variance make a test fail."""

import pytest
import torch

from stabledllm import loss
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers import ISAD, Bernoulli, Complement, FixedCount, fixed_count
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.noise.views import MultiSample, Partition, Single
from tests.checks import moments
from tests.checks.moments import check_case, check_step
from tests.checks.noise import check_density, check_row_marginals, check_weight_by_drawing, check_weight_integral
from tests.mutation.inject import noticed, scale, scale_coefficient, spread, wrap
from tests.noise.test_sources import steps
from tests.statistical.cases import FITTED, case

pytestmark = [pytest.mark.statistical, pytest.mark.long]
off_by_2_percent = pytest.mark.parametrize("factor", [1.02, 0.98])


@off_by_2_percent
@pytest.mark.parametrize(
    ("masker", "text"),
    [
        (Bernoulli, "standard"),
        (Bernoulli, "mirror"),
        (Bernoulli, "multisample3"),
        (Bernoulli, "ppots+mirror"),
        (FixedCount, "fixedcount"),
        (FixedCount, "ppots+fixedcount+mirror"),
        (FixedCount, "ppots+fixedcount+partition3"),
        (Complement, "ppots+complement"),
        (ISAD, "isad-exact"),
        (ISAD, "isad"),
    ],
)
def test_coefficient_of_a_masker(masker, text, factor, monkeypatch):
    wrap(monkeypatch, masker, "__call__", scale_coefficient(factor))
    noticed(check_case, case(text), match="mean of")


@off_by_2_percent
def test_coefficient_at_lladas_eps(factor, monkeypatch):
    wrap(monkeypatch, Bernoulli, "__call__", scale_coefficient(factor))
    noticed(check_case, case("standard", eps=1e-3), with_variance=False, match="mean of")


@off_by_2_percent
@pytest.mark.parametrize("sampler", [Uniform(), Tabulated(FITTED)], ids=lambda s: s.name)
def test_weight_of_a_density(sampler, factor, monkeypatch):
    wrap(monkeypatch, type(sampler), "weight", scale(factor))
    noticed(check_weight_integral, sampler, match=r"E\[weight\]")
    noticed(check_weight_by_drawing, "standard", sampler, match="weight")
    noticed(check_case, case("ppots" if isinstance(sampler, Tabulated) else "standard"), match="mean of")


@off_by_2_percent
def test_weight_of_a_count(factor, monkeypatch):
    wrap(monkeypatch, FixedCount, "_weight", scale(factor))
    noticed(check_weight_by_drawing, "fixedcount", Tabulated(FITTED), match="weight")


def test_complement_weighted_as_a_plain_fixed_count(monkeypatch):
    """1 / (P pi_k) forgets that a count also comes up as the other view's: unbiased too, but noisier."""
    monkeypatch.setattr(Complement, "_weight", staticmethod(FixedCount()._weight))
    noticed(check_case, case("ppots+complement"), match="variance of the loss")


def test_complement_that_forgets_that_all_masked_has_one_view(monkeypatch):
    def halved_at_the_end(weight, masker, given, k, size):
        return torch.where(k < size, weight, weight * 2)

    wrap(monkeypatch, Complement, "_weight", halved_at_the_end)
    noticed(check_case, case("complement"), match="mean of")


def test_partition_of_the_ranks_that_is_independent(monkeypatch):
    """Each view's masks are right; only the coupling is lost."""

    def own_orders(self, uniforms, maskable):
        other = torch.rand(uniforms.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return Single().ranks(other, maskable)

    monkeypatch.setattr(Partition, "ranks", own_orders)
    noticed(check_case, case("fixedcount+partition3"), match="variance of the loss")


def test_partition_of_uniforms_that_is_independent(monkeypatch):
    monkeypatch.setattr(Partition, "uniforms", lambda _, *args: MultiSample(3).uniforms(*args))
    noticed(check_case, case("partition3"), match="variance of the loss")


@off_by_2_percent
def test_omega(factor, monkeypatch):
    wrap(monkeypatch, fixed_count, "coefficients_of", scale(factor))
    noticed(check_case, case("ppots+fixedcount"), match="mean of")


@off_by_2_percent
def test_likelihood_ratio(factor, monkeypatch):
    wrap(monkeypatch, ISAD, "_likelihood_ratio", scale(factor))
    noticed(check_case, case("isad-exact"), match="mean of")


@off_by_2_percent
def test_row_loss(factor, monkeypatch):
    wrap(monkeypatch, loss, "row_losses", scale(factor))
    noticed(check_case, case("mirror"), match="mean of")


def test_masking_schedule(monkeypatch):
    """p_mask 2 % low: mask and weight agree with each other, but t no longer reaches all masked."""
    wrap(monkeypatch, Objective, "p_mask", scale(0.98))
    noticed(check_case, case("standard"), match="mean of|variance|trace")


def test_draws_that_do_not_follow_the_density(monkeypatch):
    wrap(monkeypatch, Tabulated, "icdf", lambda t, *_: t**1.02)
    noticed(check_density, Tabulated(FITTED), match="do not follow")


@pytest.mark.parametrize("factor", [1.1, 0.9])
@pytest.mark.parametrize("text", ["standard", "mirror", "ppots+mirror", "fixedcount+mirror", "isad-exact", "clipped"])
def test_variance_off_by_10_percent(text, factor, monkeypatch):
    wrap(monkeypatch, moments, "sample", spread(factor))
    noticed(check_case, case(text), match="variance of the loss")


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_gradient_variance_off_by_10_percent(factor, monkeypatch):
    def gradient_only(samples: torch.Tensor, *_):
        return torch.cat((samples[:, :1], spread(factor)(samples[:, 1:])), dim=1)

    wrap(monkeypatch, moments, "sample", gradient_only)
    noticed(check_case, case("ppots+mirror"), match="trace of the gradient's covariance")


@pytest.mark.parametrize("source", [Stratified, LowDiscrepancy])
def test_points_that_are_only_iid(source, monkeypatch):
    """A StraTS or a lattice that silently draws independent points."""
    monkeypatch.setattr(source, "uniforms", lambda _, key, n, device: IID().uniforms(key, n, device))
    method = Method.parse(f"{source.name}+fixedcount")
    noticed(check_step, method, case("fixedcount", power=1), 8, steps=1000, match="variance of the loss")


def test_strata_dealt_round_robin(monkeypatch):
    """Row i always in stratum i mod k: the step is fine, each row's u is not uniform."""
    k = 3

    def round_robin(_, key, n, device):
        return (torch.arange(n) % k + IID().uniforms(key, n, device)) / k

    monkeypatch.setattr(Stratified, "uniforms", round_robin)
    noticed(check_row_marginals, steps(Stratified(k), 6, 200), match="not uniform")
