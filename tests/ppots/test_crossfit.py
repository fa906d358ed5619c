"""Cross-fitting does not flatter, and a density's predicted variance is unbiased."""

from __future__ import annotations

import pytest
import torch

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.ppots.cells import cell_kernels
from stabledllm.ppots.crossfit import cross_fitted, folds, variance_under, weighted_moment
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.record import fit_density
from tests.checks.statistics import Z, assert_mean
from tests.fakes.laws import Law
from tests.fakes.profiles import probed, profile_of

SMOOTH = FitOptions(family="tabulated", uniform_share=0.0)


def exponential(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(shape, generator=generator, dtype=torch.float64).log()


@pytest.mark.slow
def test_pure_noise_flatters_in_sample_and_not_on_held_out_rows():
    """A flat second moment: no density can beat uniform, but every fit to noise seems to."""
    own, held = [], []
    for seed in range(60):
        profile = profile_of(exponential(seed, 12, 20, 2))
        uniform = weighted_moment(profile.moments, [(Tabulated([1.0]), torch.arange(12))])
        mine = weighted_moment(profile.moments, [(fit(profile.moments, IID(), SMOOTH).sampler, torch.arange(12))])
        own.append(float((mine - uniform).mean()))
        held.append(
            float((weighted_moment(profile.moments, cross_fitted(profile.moments, IID(), SMOOTH)) - uniform).mean())
        )
    own, held = torch.tensor(own), torch.tensor(held)
    assert own.mean() < -Z * own.std() * 60**-0.5
    assert held.mean() > 0


def test_prediction_for_a_given_density_is_unbiased():
    law = Law(tau2=0.3)
    p = Tabulated(1 + torch.arange(64) / 64)
    first, variances = [], []
    for seed in range(200):
        profile = probed(law, rows=4, rates=64, masks=2, seed=seed)
        every = [(p, torch.arange(4))]
        first.append(float(weighted_moment(profile.moments, every).mean()))
        variances.append(variance_under(profile.moments, every).value)
    kernel, _ = cell_kernels(p, profile.edges)
    second = float(profile.width @ (law.second_moment(profile.t) * kernel))
    mean = float(profile.width @ law.h(profile.t))
    assert_mean(torch.tensor(first), second, "second moment")
    assert_mean(torch.tensor(variances), second - mean**2, "variance")
    with pytest.raises(AssertionError):
        assert_mean(1.1 * torch.tensor(first), second, "second moment")


@pytest.mark.parametrize("source", [IID(), Stratified(), LowDiscrepancy()], ids=lambda source: source.name)
def test_a_rows_value_does_not_move_the_density_that_counts_on_it(source):
    losses = exponential(0, 10, 12, 3)
    changed = losses.clone()
    changed[4, 3] += 5.0
    before, after = (cross_fitted(profile_of(x).moments, source, SMOOTH) for x in (losses, changed))
    for (p, rows), (q, same) in zip(before, after, strict=True):
        assert torch.equal(rows, same)
        assert torch.equal(p.density, q.density) == (4 in rows.tolist())


@pytest.mark.parametrize(("rows", "count"), [(2, 2), (3, 3), (5, 5), (12, 5)])
def test_folds_hold_each_row_once(rows, count):
    found = folds(rows)
    assert len(found) == count
    assert torch.cat(found).tolist() == list(range(rows))
    assert all(len(f) for f in found)


def test_cells_weigh_by_their_width():
    """Losses of 1 everywhere: ∫ 1/p dt, exactly, on cells that are not equal."""
    profile = probed(Law(tau2=0.0, h=lambda t: 1 + 0 * t, sd=lambda t: 0 * t), rows=4, rates=6, masks=2)
    assert profile.width.min() < 0.1 * profile.width.max()
    p = Tabulated(1 + 9 * torch.arange(64) / 64)
    found = weighted_moment(profile.moments, [(p, torch.arange(4))])
    exact = (1 / p.density).mean()
    torch.testing.assert_close(found, exact.expand(4), rtol=1e-9, atol=0)
    assert variance_under(profile.moments, [(p, torch.arange(4))]).value == pytest.approx(float(exact - 1), rel=1e-9)


def test_folds_of_one_row_are_fitted_without_a_warning(recwarn):
    """Of two rows each density comes from the other one, which has no spread."""
    density = fit_density(probed(Law(), rows=2), Method.parse("ppots"), FitOptions(starts=2))
    assert density.record["diagnostics"]["variance_fitted"]["stderr"] is None
    assert not [str(w.message) for w in recwarn if "degrees of freedom" in str(w.message)]
