"""The stratified probe: unbiased cell averages from rates of each row's own, and EPR compared on cell averages."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad

from stabledllm.config import PPOTSSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.noise.sources import IID, LowDiscrepancy
from stabledllm.ppots import epr
from stabledllm.ppots import moments as moments_module
from stabledllm.ppots import profile as profile_module
from stabledllm.ppots.crossfit import folds, variance_under
from stabledllm.ppots.epr import fit_epr
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.profile import Profile, probe, rate_edges
from tests.checks.statistics import assert_mean
from tests.fakes.laws import Law
from tests.fakes.meters import FakeMeter
from tests.ppots.test_epr import FINE, density
from tests.ppots.test_profile import ContextModel

BENT = Law(tau2=0.1, rho=-0.6, h=lambda t: 0.3 + 4 * t**3, sd=lambda t: 2 - 1.8 * t**0.5)
"""Curved enough within a cell for its midpoint to be told from its average."""
X, W = np.polynomial.legendre.leggauss(24)


def stratified(
    law: Law = BENT,
    method: str = "standard",
    design: str = "stratified",
    options=None,
    data: int = 20_000,
    **sizes,
) -> Profile:
    sizes = {"rows": 15, "rates": 4, "masks": 2, "seed": 0} | sizes
    return probe(FakeMeter(law, data), Method.parse(method, options), **sizes, design=design)


def average(f, edges: torch.Tensor) -> list[float]:
    """Average of f over each cell by quadrature."""
    low, high = edges[:-1, None], edges[1:, None]
    nodes = (low + high) / 2 + (high - low) / 2 * torch.from_numpy(X)
    return (f(nodes) @ torch.from_numpy(W / 2)).tolist()


def check_cell_averages(design: str) -> None:
    law, profile = BENT, stratified(BENT, "mirror", design, rows=900, rates=2, masks=6)
    found = {
        "g": (profile.moments.mean, law.h),
        "v": (profile.view_noise(), lambda t: law.sd(t) ** 2),
        "v of the views' mean": (profile.moments.noise, lambda t: law.sd(t) ** 2 * (1 + law.rho) / 2),
        "covariance": (profile.view_covariance(), lambda t: law.sd(t) ** 2 * law.rho),
        "second moment": (profile.moments.moment, lambda t: law.second_moment(t, 2)),
    }
    for name, (values, f) in found.items():
        for j, exact in enumerate(average(f, profile.edges)):
            assert_mean(values[:, j], exact, f"{name} in cell {j}")


def test_cell_moments_are_unbiased_and_a_grids_are_not():
    check_cell_averages("stratified")
    with pytest.raises(AssertionError):
        check_cell_averages("grid")


def test_masks_at_rates_of_their_own_are_noticed(monkeypatch):
    """A rate per mask instead of per row would count g's slope as mask noise."""

    class Scattering(FakeMeter):
        def view_losses(self, row, t, method, key, sampler=None):
            scattered = t.view(900, -1, 6)[:, :, torch.randperm(6)].roll(1, dims=0)
            mixed = torch.where(torch.arange(6) % 2 == 0, t.view(900, -1, 6), scattered)
            return super().view_losses(row, mixed.flatten(), method, key, sampler)

    monkeypatch.setattr("tests.ppots.test_stratified.FakeMeter", Scattering)
    with pytest.raises(AssertionError, match="v"):
        check_cell_averages("stratified")


@functools.cache
def steep_profiles() -> tuple[Law, list[Profile]]:
    """Var_x0 g = tau2 h², a tenth of the variance that the slope of g alone gives rows of different rates."""
    steep = Law(tau2=0.002, h=lambda t: 1 + 4 * t, sd=lambda t: 0.05 + 0 * t)
    return steep, [stratified(steep, rows=30, rates=2, seed=s) for s in range(150)]


def check_between_rows() -> None:
    steep, profiles = steep_profiles()
    exact = average(lambda t: steep.tau2 * steep.h(t) ** 2, profiles[0].edges)
    for j, value in enumerate(exact):
        assert_mean(torch.stack([p.moments.between_rows()[j] for p in profiles]), value, f"Var g in cell {j}")


@pytest.mark.slow
def test_spread_over_rows_is_not_the_slope_of_g(monkeypatch):
    check_between_rows()
    monkeypatch.setattr(moments_module, "_LEAST_FOR_TREND", 10**6)
    with pytest.raises(AssertionError, match="Var g"):
        check_between_rows()


def test_few_rows_still_have_a_spread():
    assert stratified(rows=3).moments.between_rows().isfinite().all()
    assert stratified(rows=4).moments.between_rows().isfinite().all()


@pytest.mark.slow
def test_rates_are_uniform_in_their_cells_and_each_rows_own():
    profile = stratified(rows=8, rates=6)
    low, high = profile.edges[:-1], profile.edges[1:]
    assert ((profile.rate >= low) & (profile.rate < high)).all()
    u = (profile.rate - low) / profile.width
    assert all(len(column.unique()) == 8 for column in u.T)
    gaps = u.sort(dim=0).values.diff(dim=0)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 8), msg="the rows of a cell form a lattice")
    assert len({tuple(column.argsort().tolist()) for column in u.T}) > 1, "dealt anew in each cell"
    # Rates do not depend on which rows are chosen: of four there is nothing to shuffle.
    drawn = torch.stack([stratified(rows=4, seed=s, data=4).rate for s in range(400)])
    share = (drawn - rate_edges(4)[:-1]) / rate_edges(4).diff()
    for i in range(4):
        assert_mean(share[:, i, -1], 0.5, "a row's place in its cell")
        assert_mean((share[:, i, -1] - 0.5) ** 2, 1 / 12, "and its variance")


def test_reproducible_from_the_seed():
    one, again, other = (stratified(seed=s) for s in (3, 3, 4))
    assert torch.equal(one.rate, again.rate)
    assert torch.equal(one.view_losses, again.view_losses)
    assert not torch.equal(one.rate, other.rate)


def test_fewer_rows_keep_their_rates():
    profile = stratified(rows=6)
    keep = torch.tensor([4, 1])
    torch.testing.assert_close(profile.moments.select(keep).rate, profile.rate[keep])
    assert stratified(design="grid").moments.select(keep).rate is None


@pytest.mark.parametrize("below", [0.3, 0.5])
def test_no_cell_straddles_the_bound_of_the_second_view(below):
    options = MethodOptions(mirror_below=below)
    profile = stratified(method="mirror", options=options, rows=40)
    assert below in profile.edges.tolist()
    assert profile.cost.tolist() == [2.0 if t < below else 1.0 for t in profile.t]
    assert ((profile.rate < below) == profile.used[..., 1]).all()
    assert profile.forward_passes == 40 * 2 * int(profile.cost.sum())


@pytest.mark.parametrize(("bad", "name"), [({"rows": 1}, "rows"), ({"rates": 1}, "rates"), ({"masks": 1}, "masks")])
def test_too_small_a_probe_is_refused(bad, name):
    with pytest.raises(UserError, match=f"expected at least 2 {name}, found 1"):
        stratified(**bad)


@pytest.mark.slow
def test_the_variance_under_a_density_is_unbiased():
    """∫ E[l²] / p dt - (E l)² for p constant on the cells, in 4 wide cells."""
    law, edges = BENT, rate_edges(4)
    p = Tabulated([1.0, 0.5, 1.0, 1.5])
    share = p.cdf(edges).diff() / edges.diff()
    second = sum(
        float(w) * m / float(s) for w, m, s in zip(edges.diff(), average(law.second_moment, edges), share, strict=True)
    )
    mean = sum(float(w) * m for w, m in zip(edges.diff(), average(law.h, edges), strict=True))

    def found(design):
        everyone = torch.arange(60)
        profiles = (stratified(rows=60, seed=s, design=design) for s in range(100))
        return torch.tensor([variance_under(f.moments, [(p, everyone)]).value for f in profiles], dtype=torch.float64)

    assert_mean(found("stratified"), second - mean**2)
    with pytest.raises(AssertionError):
        assert_mean(found("grid"), second - mean**2)


def test_the_real_meter_is_asked_at_each_rows_rates():
    rows = [TokenRow(list(range(i, i + 12 + i)), prompt_length=4) for i in range(6)]
    meter = LossMeter(MeteredModel(ContextModel(), 256, 257), rows, Objective(), tokens_per_batch=256)
    profile = probe(meter, Method(), rows=3, rates=4, masks=2, seed=5, design="stratified")
    assert profile.forward_passes == meter.forwards
    row = profile.rows.repeat_interleave(2 * len(profile.t))
    again = meter.losses(
        row, profile.rate.flatten().repeat_interleave(2), Method(), profile_module.Key(5, profile_module._PROBE_STEP)
    )
    torch.testing.assert_close(profile.values.flatten(), again, rtol=1e-12, atol=0)


# The fit.

WIDE = rate_edges(8).numpy()
NODES = ((WIDE[1:] + WIDE[:-1]) / 2)[:, None] + np.diff(WIDE)[:, None] * np.polynomial.legendre.leggauss(4)[0] / 2
SHARE = np.polynomial.legendre.leggauss(4)[1] / 2


def root_of_averages(name: str) -> np.ndarray:
    square = density(name, np.linspace(0, 1, 200_001)[1:-1]) ** 2
    cell = np.searchsorted(WIDE, np.linspace(0, 1, 200_001)[1:-1]) - 1
    return np.sqrt(np.bincount(cell, square) / np.bincount(cell))


@pytest.mark.parametrize("name", ["mild", "spike at 0", "cup"])
def test_epr_is_recovered_from_the_roots_of_wide_cells_averages(name):
    points, width = root_of_averages(name), np.diff(WIDE)
    found = fit_epr(NODES, width, points, share=SHARE)
    truth = density(name, FINE)

    def error(parameters):
        model = np.exp(epr.log_density(epr.theta_of(parameters), FINE))
        return (truth / truth.mean() * np.log(truth / truth.mean() * model.mean() / model)).mean()

    assert found.kl < 1e-5
    assert error(found.parameters) < 1e-3
    midpoints = fit_epr(NODES.mean(1), width, points)
    assert error(midpoints.parameters) > 3 * error(found.parameters), "the points are no values at midpoints"


def test_the_cells_jacobian_is_the_derivative():
    random = np.random.default_rng(0)
    weight = random.random(len(NODES))
    for theta in epr._starts(random, 6):
        error = check_grad(
            lambda x: weight @ epr._log_cell_square(x, NODES, np.log(SHARE))[0],
            lambda x: weight @ epr._log_cell_square(x, NODES, np.log(SHARE))[1],
            theta,
        )
        assert error < 1e-3


def test_one_node_per_cell_is_the_grids_fit():
    t = np.linspace(0.05, 0.95, 10)
    points = density("mild", t)
    width = np.full(10, 0.1)
    assert fit_epr(t, width, points, starts=3) == fit_epr(t[:, None], width, points, share=np.ones(1), starts=3)


@pytest.mark.parametrize("source", [IID(), LowDiscrepancy()], ids=lambda source: source.name)
def test_a_known_optimum_is_found_from_a_stratified_probe(source):
    """p* of the law: the root of its second moment, or of E v + Var g where the source averages g out."""
    law = Law(tau2=0.2, h=lambda t: 0.2 + 2 * t, sd=lambda t: 2 - 1.5 * t)
    t = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    square = law.second_moment(t) if source.independent else law.sd(t) ** 2 + law.tau2 * law.h(t) ** 2
    p = fit(stratified(law, rows=400, rates=8).moments, source, FitOptions(uniform_share=0.0, starts=8)).sampler
    excess = float((square / p.density).mean() / square.sqrt().mean() ** 2) - 1
    assert excess < 0.01
    flat = float(square.mean() / square.sqrt().mean() ** 2) - 1
    assert flat > 3 * excess


def test_the_default_needs_at_most_a_fifth_of_the_papers_forwards():
    default = PPOTSSettings()
    cells = len(rate_edges(default.rates)) - 1
    assert default.design == "stratified"
    assert default.rows * cells * default.masks <= 15 * 70 * 15 / 5


def test_every_fold_of_the_smallest_default_use_can_be_fitted():
    profile = stratified(rows=5, rates=4)
    for fold in folds(5):
        keep = torch.ones(5, dtype=torch.bool)
        keep[fold] = False
        assert (
            fit(profile.moments.select(keep), LowDiscrepancy(), FitOptions(starts=2)).sampler.density.isfinite().all()
        )
