"""The probe: a grid that misses nothing near t = 0, and estimators with the right mean."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.noise.sources import LowDiscrepancy, Stratified
from stabledllm.noise.streams import Key
from stabledllm.ppots import profile as profile_module
from stabledllm.ppots.profile import probe, rate_edges
from stabledllm.ppots.target import optimal_square
from tests.checks.statistics import assert_mean, assert_variance
from tests.fakes.laws import Law
from tests.fakes.meters import FakeMeter
from tests.fakes.profiles import probed


@pytest.mark.parametrize("rates", [4, 12, 24, 70])
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.0])
def test_cells_cover_0_1_in_order(rates, eps):
    edges = rate_edges(rates, eps)
    assert edges[0] == 0
    assert edges[-1] == 1
    assert (edges.diff() > 0).all()


def test_midpoints_integrate_the_weights_tail():
    """∫ 1 / p_mask dt = ln(1/eps) / (1 - eps); 24 equal midpoints would miss more than a quarter of it."""
    edges, eps = rate_edges(24, 1e-3), 1e-3
    exact = math.log(1 / eps) / (1 - eps)

    def midpoint_rule(edges):
        return float((edges.diff() / ((1 - eps) * (edges[1:] + edges[:-1]) / 2 + eps)).sum())

    assert abs(midpoint_rule(edges) / exact - 1) < 0.05
    assert midpoint_rule(torch.linspace(0, 1, 25, dtype=torch.float64)) < 0.75 * exact


@pytest.fixture(scope="module")
def large():
    law = Law(rho=-0.6)
    return law, probed(law, "mirror", rows=400, rates=4, masks=6)


def test_rows_means_and_variances_are_right_and_an_error_would_show(large):
    law, profile = large
    for j, t in enumerate(profile.t):
        noise = law.sd(t) ** 2
        found = {
            "g": (profile.moments.mean[:, j], law.h(t)),
            "v": (profile.view_noise()[:, j], noise),
            "v of the views' mean": (profile.moments.noise[:, j], noise * (1 + law.rho) / 2),
            "covariance": (profile.view_covariance()[:, j], noise * law.rho),
            "second moment": (profile.moments.moment[:, j], law.second_moment(t, 2)),
        }
        for name, (values, exact) in found.items():
            assert_mean(values, float(exact), name)
            with pytest.raises(AssertionError):
                assert_mean(1.5 * values, float(exact), name)


def test_var_g_is_unbiased():
    law, t = Law(tau2=0.3), None
    values = []
    for seed in range(150):
        profile = probed(law, rows=12, rates=4, masks=2, seed=seed)
        t = profile.t
        values.append(profile.moments.between_rows())
    for j in range(len(t)):
        assert_mean(torch.stack(values)[:, j], float(0.3 * law.h(t[j]) ** 2), "Var_x0 g")


@pytest.mark.parametrize("rho", [-1.0, -0.5, 0.0, 0.7])
def test_rho_is_measured(rho):
    curve = probed(Law(rho=rho), "mirror", rows=40, rates=5, masks=40).rho()
    assert ((curve.value - rho).abs() <= 4.3 * curve.stderr + 1e-9).all()


def curves_of(profile) -> dict:
    return profile.curves() | {"second_moment": profile.moments.curve()}


def test_standard_errors_are_those_of_leaving_each_row_out():
    profile = probed(Law(rho=-0.4), "mirror", rows=7)

    others = [torch.arange(7) != i for i in range(7)]
    fewer = [replace(profile, view_losses=profile.view_losses[o], used=profile.used[o]) for o in others]
    for name, curve in curves_of(profile).items():
        left_out = torch.stack([curves_of(some)[name].value for some in fewer])
        by_hand = (6 / 7 * ((left_out - left_out.mean(0)) ** 2).sum(0)).sqrt()
        torch.testing.assert_close(curve.stderr, by_hand)


def test_views_left_out_cost_and_count_nothing():
    meter, method = FakeMeter(Law(rho=-0.5)), Method.parse("mirror", MethodOptions(mirror_below=0.5))
    profile = probe(meter, method, rows=300, rates=4, masks=8, seed=0)
    assert profile.forward_passes == meter.forwards
    assert profile.cost.tolist() == [2.0 if t < 0.5 else 1.0 for t in profile.t]
    assert profile.view_covariance()[:, -1].isnan().all()
    for j, t in enumerate(profile.t):
        assert_mean(profile.moments.mean[:, j], float(meter.law.h(t)), "g")
        views = 2 if t < 0.5 else 1
        assert_mean(profile.moments.moment[:, j], float(meter.law.second_moment(t, views)), "second moment")


def check_probe_is_a_function_of_the_seed() -> None:
    found = []
    for framework_seed in (0, 1):
        torch.manual_seed(framework_seed)
        found.append(probed(Law(), rows=5, rates=6, masks=3, seed=3))
    assert torch.equal(found[0].rows, found[1].rows)
    assert torch.equal(found[0].view_losses, found[1].view_losses)
    assert len(found[0].rows.unique()) == 5
    assert not torch.equal(probed(Law(), rows=5, rates=6, masks=3, seed=4).rows, found[0].rows)


def test_mistake_4_a_probe_that_differs_between_ranks_is_noticed(monkeypatch):
    check_probe_is_a_function_of_the_seed()

    class RankKey(profile_module.Key):
        def permutation(self, stream, n, device):
            return torch.randperm(n)

    monkeypatch.setattr(profile_module, "Key", RankKey)
    with pytest.raises(AssertionError):
        check_probe_is_a_function_of_the_seed()


HEAVY = Law(tau2=0.1, h=lambda t: 2 + 0 * t, sd=lambda t: 4 - 3 * t, heavy=True)


def check_second_moment(meter) -> None:
    profile = probe(meter, Method(), rows=400, rates=4, masks=10, seed=0)
    for j, t in enumerate(profile.t):
        assert_mean(profile.moments.moment[:, j], float(HEAVY.second_moment(t)), "second moment")


def test_mistake_5_clamped_losses_are_noticed():
    class Clamping(FakeMeter):
        def view_losses(self, *args, **kwargs):
            losses, used = super().view_losses(*args, **kwargs)
            return losses.clamp(max=10.0), used

    check_second_moment(FakeMeter(HEAVY))
    with pytest.raises(AssertionError, match="second moment"):
        check_second_moment(Clamping(HEAVY))


def test_width_weights_every_integral():
    profile = probed(Law(), rates=24)
    assert float(profile.width.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(profile.edges, rate_edges(24))
    torch.testing.assert_close(profile.t, (profile.edges[1:] + profile.edges[:-1]) / 2)
    assert float(profile.width @ profile.t) == pytest.approx(0.5, abs=1e-12), "midpoints are exact for lines"
    assert len(profile.t) > 24
    assert float(profile.t.mean()) < 0.45, "the plain mean over rates is no integral"


REPEATS = 400


@pytest.fixture(scope="module")
def repeated():
    """Profiles of many seeds, and the variance of x over the 1000 rows that every seed draws from."""
    law = Law(rho=-0.6)
    between = float(FakeMeter(law, 1000).x.var())
    return law, between, [probed(law, "mirror", rows=20, rates=2, masks=4, seed=s) for s in range(REPEATS)]


def test_reported_standard_errors_are_those_of_repeats(repeated):
    law, _, profiles = repeated
    for name in ("g", "v", "v_views", "second_moment"):
        curves = [curves_of(p)[name] for p in profiles]
        spread = torch.stack([c.value for c in curves]).std(0)
        told = torch.stack([c.stderr for c in curves]).square().mean(0).sqrt()
        torch.testing.assert_close(told, spread, rtol=0.15, atol=0)
    for j, t in enumerate(profiles[0].t):
        noise = float(law.sd(t) ** 2 * (1 + law.rho) / 2)
        found = torch.stack([p.curves()["v_views"].value[j] for p in profiles])
        assert_variance(found, 2 * noise**2 / 3 / 20, "variance of v")


@pytest.mark.parametrize("source", [Stratified(), LowDiscrepancy()], ids=lambda source: source.name)
def test_moments_of_other_sources_and_the_variant_have_the_right_mean(repeated, source):
    law, between, profiles = repeated
    for j, t in enumerate(profiles[0].t):
        noise, h2 = float(law.sd(t) ** 2 * (1 + law.rho) / 2), float(law.h(t) ** 2)
        squares = torch.stack([optimal_square(p.moments, source) for p in profiles])[:, j] * 2
        assert_mean(squares, noise + between * h2, source.name)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * squares, noise + between * h2, source.name)


def test_the_averaged_views_follow_from_one_views_noise_and_rho():
    profile = probed(Law(rho=-0.5), "mirror", rows=40, rates=5, masks=40)
    both = profile.view_noise().mean(0) * (1 + profile.rho().value) / 2
    torch.testing.assert_close(both, profile.curves()["v_views"].value)
    assert probed(Law()).rho() is None


def test_rows_are_distinct_in_range_and_all_when_few():
    method, law = Method(), Law()
    some = probe(FakeMeter(law, 30), method, rows=20, rates=4, masks=2, seed=0).rows
    assert len(some.unique()) == 20
    assert some.max() < 30
    every = probe(FakeMeter(law, 7), method, rows=20, rates=4, masks=2, seed=0).rows
    assert every.sort().values.tolist() == list(range(7))


@pytest.mark.parametrize(("bad", "name"), [({"rows": 1}, "rows"), ({"rates": 1}, "rates"), ({"masks": 1}, "masks")])
def test_too_small_a_probe_is_refused(bad, name):
    with pytest.raises(UserError, match=f"expected at least 2 {name}, found 1"):
        probed(Law(), **bad)
    with pytest.raises(UserError, match="expected at least 2 rows, found 1"):
        probe(FakeMeter(Law(), 1), Method(), rows=5, rates=4, masks=2, seed=0)


class ContextModel(torch.nn.Module):
    """Cross-entropies that depend on the target and on how much of its row is masked."""

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, noisy, attention_mask, *, selected, targets):
        share = (noisy == 256).sum(1, keepdim=True) / attention_mask.sum(1, keepdim=True)
        nll = self.level + share + (targets % 7) / 7
        return SimpleNamespace(nll=nll[selected])


def test_the_real_meter_gives_the_same_losses_cell_by_cell():
    rows = [TokenRow(list(range(i, i + 12 + i)), prompt_length=4) for i in range(6)]
    meter = LossMeter(MeteredModel(ContextModel(), 256, 257), rows, Objective(), tokens_per_batch=256)
    method = Method.parse("mirror", MethodOptions(mirror_below=0.5))
    profile = probe(meter, method, rows=3, rates=4, masks=2, seed=5)
    assert profile.forward_passes == meter.forwards
    row = profile.rows.repeat_interleave(2 * len(profile.t))
    t = profile.t.repeat_interleave(2).repeat(3)
    again = meter.losses(row, t, method, Key(5, profile_module._PROBE_STEP))
    torch.testing.assert_close(profile.values.flatten(), again, rtol=1e-12, atol=0)
