"""Mistakes 2 to 5 of docs/published_mistakes.md, once each: the guard runs on the library, then on the mutant.

Those of EPR's options, the rank's rows and clamped losses are in test_epr.py and test_profile.py.
"""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots import fit as fit_module
from stabledllm.ppots import profile as profile_module
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.profile import probe
from stabledllm.ppots.record import fit_density
from tests.checks.statistics import TEST_FAILURE_RATE, assert_mean
from tests.fakes.laws import Law
from tests.fakes.meters import FakeMeter
from tests.fakes.profiles import probed

pytestmark = pytest.mark.long

LAW = Law(h=lambda t: 1 + 3 * t**4, sd=lambda t: 1 - 0.5 * t)


def fitted() -> Tabulated:
    return fit(probed(LAW, rates=30).moments, IID(), FitOptions()).sampler


# 2. "EPR" fits nothing; the raw grid is used.
def check_draws_are_not_on_the_raw_grid(sampler) -> None:
    t = sampler.icdf(Key(0, 0).row_uniforms(Stream.RATE, torch.arange(5000)))
    assert len(t.unique()) == 5000
    assert stats.kstest(t.numpy(), lambda x: sampler.cdf(torch.from_numpy(x)).numpy()).pvalue > TEST_FAILURE_RATE


class RawGrid(Tabulated):
    """Draws only the middles of its cells."""

    def icdf(self, u):
        return (self.cell(super().icdf(u)) + 0.5) / len(self)


def test_2_the_raw_grid_is_noticed():
    check_draws_are_not_on_the_raw_grid(fitted())
    with pytest.raises(AssertionError):
        check_draws_are_not_on_the_raw_grid(RawGrid(1 + 3 * torch.arange(30) / 30))


def check_the_data_reaches_the_density() -> None:
    rising, falling = (fit(probed(Law(tau2=0.0, h=h)).moments, IID(), FitOptions()).sampler for h in (up, down))
    assert rising.density[-1] > rising.density[0]
    assert falling.density[-1] < falling.density[0]


def up(t):
    return 1 + 5 * t


def down(t):
    return 6 - 5 * t


def test_2_a_fit_that_ignores_its_points_is_noticed(monkeypatch):
    check_the_data_reaches_the_density()
    real = fit_module.fit_epr
    monkeypatch.setattr(fit_module, "fit_epr", lambda t, w, points, **kw: real(t, w, 0 * points + 1, **kw))
    with pytest.raises(AssertionError):
        check_the_data_reaches_the_density()


# 3. t only from [1/T, 1 - 1/T].
def check_support_is_all_of_0_1(sampler) -> None:
    t = sampler.icdf(Key(1, 0).row_uniforms(Stream.RATE, torch.arange(40_000)))
    assert_mean(sampler.weight(t), 1.0, "E[weight]")
    assert t.max() > 1 - 1 / 300


class Inner(Tabulated):
    """The same density on [1/T, 1 - 1/T] only, T = 30, weighted by 1/p as there."""

    def icdf(self, u):
        return 1 / 30 + (1 - 2 / 30) * super().icdf(u)

    def weight(self, t):
        return (1 - 2 / 30) * super().weight((t - 1 / 30) / (1 - 2 / 30))


def test_3_a_cut_support_is_noticed():
    check_support_is_all_of_0_1(fitted())
    with pytest.raises(AssertionError, match=r"E\[weight\]"):
        check_support_is_all_of_0_1(Inner(fitted().density))


def test_3_the_probes_cells_reach_both_ends():
    profile = probed(LAW, rates=30)
    torch.testing.assert_close(profile.t[0], profile.width[0] / 2)
    torch.testing.assert_close(1 - profile.t[-1], profile.width[-1] / 2)


# 4. The probe is not reproducible from the seed and differs on every rank.
def check_the_density_is_a_function_of_the_seed() -> None:
    found = []
    for framework_seed in (0, 1):
        torch.manual_seed(framework_seed)
        found.append(fit_density(probed(LAW, rows=5, rates=6, masks=3, seed=3), Method.parse("ppots")).record)
    same = found[0] == found[1]
    assert same, "two fits of one seed differ"  # no diff of records: pytest takes minutes for it where CI is set


@pytest.mark.slow
def test_4_a_density_that_differs_between_ranks_is_noticed(monkeypatch):
    check_the_density_is_a_function_of_the_seed()

    calls = []

    class RankKey(profile_module.Key):
        def permutation(self, stream, n, device):
            calls.append(n)
            return torch.arange(n).roll(len(calls))

    monkeypatch.setattr(profile_module, "Key", RankKey)
    with pytest.raises(AssertionError):
        check_the_density_is_a_function_of_the_seed()


def test_4_the_probes_noise_is_no_training_steps():
    seen = []

    class Spy(FakeMeter):
        def view_losses(self, row, t, method, key, sampler=None):
            assert sampler is None, "the probe takes plain losses"
            seen.append((key, len(row)))
            return super().view_losses(row, t, method, key, sampler)

    profile = probe(Spy(LAW), Method(), rows=5, rates=6, masks=3, seed=3)
    assert profile_module._PROBE_STEP > 500_000
    assert seen == [(Key(3, profile_module._PROBE_STEP), 5 * len(profile.t) * 3)], "the full grid in one call"


# 5. Losses clamped at 10 while the density is fitted.
def check_the_tail_reaches_the_density() -> None:
    heavy = Law(tau2=0.0, h=lambda t: 2 + 0 * t, sd=lambda t: 20 * t**4, heavy=True)
    sampler = fit(probed(heavy, rows=30, rates=20, masks=20).moments, IID(), FitOptions(uniform_share=0.0)).sampler
    t = torch.tensor([0.3, 0.95], dtype=torch.float64)
    low, high = heavy.second_moment(t).sqrt()
    p = sampler.log_prob(t).exp()
    assert abs(float(p[1] / p[0] / (high / low)) - 1) < 0.2


def test_5_clamped_losses_are_noticed(monkeypatch):
    check_the_tail_reaches_the_density()
    real = FakeMeter.view_losses

    def clamped(*args, **kwargs):
        losses, used = real(*args, **kwargs)
        return losses.clamp(max=10.0), used

    monkeypatch.setattr(FakeMeter, "view_losses", clamped)
    with pytest.raises(AssertionError):
        check_the_tail_reaches_the_density()
