"""From a probe to a density: what it guarantees whatever was fitted, and the file it is kept in."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from scipy import stats

from stabledllm.errors import UserError
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.cells import cell_kernels
from stabledllm.ppots.crossfit import cross_fitted, dearer_than, variance_under, weighted_moment
from stabledllm.ppots.fit import FitOptions, fit, interpolated
from stabledllm.ppots.record import FittedDensity, fit_density
from stabledllm.ppots.target import optimal_square
from stabledllm.stats.pareto import pareto_k
from stabledllm.variance.predicted import per_row_variance
from tests.checks.statistics import TEST_FAILURE_RATE, Z, assert_mean
from tests.fakes.laws import Law
from tests.fakes.profiles import probed, profile_of, profile_with_root

STEEP = Law(tau2=0.2, h=lambda t: 0.5 + t**2, sd=lambda t: 0.2 + 6 * (1 - t) ** 8)
MIDDLE = (torch.arange(70, dtype=torch.float64) + 0.5) / 70


def draws(sampler, n=100_000, step=0):
    return sampler.icdf(Key(3, step).row_uniforms(Stream.RATE, torch.arange(n)))


@functools.cache
def steep_fit(family: str = "epr"):
    return fit(probed(STEEP, rates=40).moments, IID(), FitOptions(family=family))


@functools.cache
def known_fit() -> tuple[Law, FittedDensity]:
    """A law with E l = 1, and the density fitted to a large probe of it."""
    law = Law(tau2=0.2, h=lambda t: 1 + 0 * t, sd=lambda t: 0.3 + 3 * t**2)
    return law, fit_density(probed(law, rows=200, rates=40, masks=10), Method.parse("ppots"))


@pytest.fixture(scope="module", params=["epr", "tabulated"])
def fitted(request):
    return steep_fit(request.param)


def check_sampler(sampler) -> None:
    t = draws(sampler)
    assert stats.kstest(t.numpy(), lambda x: sampler.cdf(torch.from_numpy(x)).numpy()).pvalue > TEST_FAILURE_RATE
    assert_mean(sampler.weight(t), 1.0, "E[weight]")
    assert_mean(sampler.weight(t) * torch.exp(2 * t), (np.e**2 - 1) / 2, "E[weight e^2t]")
    assert t.min() < 1e-3
    assert t.max() > 1 - 1e-3


def test_draws_follow_the_density_over_all_of_0_1_and_keep_the_objective(fitted):
    check_sampler(fitted.sampler)


def test_mistakes_2_and_3_a_raw_grid_and_a_cut_support_are_noticed():
    class RawGrid(Tabulated):
        def icdf(self, u):
            return (self.cell(super().icdf(u)) + 0.5) / len(self)

    class Inner(Tabulated):
        def icdf(self, u):
            return 1 / 30 + (1 - 2 / 30) * super().icdf(u)

    points = optimal_square(probed(STEEP, rates=40).moments, IID()).sqrt()
    for broken in (RawGrid(points), Inner(points)):
        with pytest.raises(AssertionError):
            check_sampler(broken)


def test_the_uniform_share_bounds_every_weight():
    profile = profile_with_root(torch.exp(torch.linspace(0, 25, 40)))
    for share in (0.02, 0.05, 0.5):
        sampler = fit(profile.moments, IID(), FitOptions(family="tabulated", uniform_share=share)).sampler
        assert (1 / sampler.density).max() <= 1 / share * (1 + 1e-12)
    assert fit(profile.moments, IID(), FitOptions(family="tabulated", uniform_share=1.0)).sampler.density.eq(1).all()


def test_flat_losses_give_uniforms_t_and_weights_bit_for_bit():
    sampler = fit(profile_of(torch.full((6, 23, 3), 1 / 3)).moments, IID(), FitOptions(family="tabulated")).sampler
    rows = Rows(torch.arange(257), 257, torch.ones(257, 4, dtype=torch.bool), torch.arange(4))
    for text, plain_text in (("ppots", "standard"), ("strats+ppots+mirror", "strats+mirror")):
        flat = Method.parse(text).draw(Key(11, 7), rows, sampler)
        plain = Method.parse(plain_text).draw(Key(11, 7), rows, Uniform())
        assert torch.equal(flat.t, plain.t)
        assert torch.equal(flat.coefficient, plain.coefficient)


def test_both_families_find_the_root_of_the_second_moment():
    fine = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    truth = 0.5 + 2 * fine.clamp(MIDDLE[0], MIDDLE[-1]) ** 3
    truth = truth / truth.mean()
    for family, tolerance in (("epr", 1e-5), ("tabulated", 2e-3)):
        options = FitOptions(family=family, uniform_share=0.0)
        density = fit(profile_with_root(0.5 + 2 * MIDDLE**3).moments, IID(), options).sampler.density
        assert (truth * (truth / density).log()).mean() < tolerance


def test_p_is_refitted_for_the_source_and_the_cost():
    profile = probed(Law(tau2=0.0, h=lambda t: 1 + 9 * t, sd=lambda t: 1 + 0 * t), rows=30, rates=30, masks=20)
    options = FitOptions(uniform_share=0.0, step_rows=512)
    iid, fine = (fit(profile.moments, s, options).sampler.density for s in (IID(), LowDiscrepancy()))
    assert iid[-1] / iid[0] > 4, "iid follows g"
    assert 0.7 < fine[-1] / fine[0] < 1.4, "a fine lattice removes g: only v counts"
    half = probed(STEEP, "mirror", rates=40, options=MethodOptions(mirror_below=0.5))
    torch.testing.assert_close(optimal_square(half.moments) * half.cost, half.moments.curve().value)
    assert half.cost.unique().tolist() == [1.0, 2.0]


def double_bump(noise: float = 0.02):
    root = 0.05 + torch.exp(-(((MIDDLE - 0.3) / 0.05) ** 2)) + torch.exp(-(((MIDDLE - 0.75) / 0.05) ** 2))
    return profile_with_root(root, noise=noise)


@functools.cache
def double_bump_fit() -> FittedDensity:
    return fit_density(double_bump(), Method.parse("ppots"))


def test_double_bump_falls_back_and_says_so():
    found = fit(double_bump().moments, IID(), FitOptions())
    assert found.kind == "tabulated"
    density = double_bump_fit()
    assert density.record["kind"] == "tabulated"
    assert "EPR does not fit" in density.fallback


@pytest.mark.slow
def test_predicted_variances_of_a_known_law():
    """Uniform: ∫ m dt - 1; fitted: (∫ sqrt m dt)² - 1, here with E l = 1."""
    law, density = known_fit()
    d = density.record["diagnostics"]
    t = (torch.arange(10_000) + 0.5) / 10_000
    m = law.second_moment(t)
    for name, second in (("variance_uniform", m.mean()), ("variance_fitted", m.sqrt().mean() ** 2)):
        assert abs(d[name]["value"] - float(second - 1)) < Z * d[name]["stderr"] + 0.03 * float(second)


def test_cross_fitting_does_not_flatter():
    """On pure noise the density judged on its own rows looks better than uniform; on other rows it does not."""
    law = Law(tau2=0.0, h=lambda t: 1 + 0 * t, sd=lambda t: 1 + 0 * t, heavy=True)
    own, held = [], []
    for seed in range(25):
        profile = probed(law, rows=10, rates=24, masks=2, seed=seed)
        options = FitOptions(family="tabulated", uniform_share=0.0)
        every = [(Tabulated([1.0]), torch.arange(10))]
        plain = variance_under(profile.moments, every).value
        own.append(
            variance_under(profile.moments, [(fit(profile.moments, IID(), options).sampler, torch.arange(10))]).value
            - plain
        )
        held.append(variance_under(profile.moments, cross_fitted(profile.moments, IID(), options)).value - plain)
    assert max(own) < 0
    assert torch.tensor(held).mean() > 0
    folds = [rows for _, rows in cross_fitted(profile.moments, IID(), options)]
    assert torch.cat(folds).tolist() == list(range(10))


def test_mean_weight_of_a_cell_is_exact_also_when_cells_do_not_nest():
    sampler = steep_fit().sampler
    for rates in (30, 32):
        edges = torch.arange(rates + 1, dtype=torch.float64) / rates
        square, plain = cell_kernels(sampler, edges)
        assert square.mean() == pytest.approx(float((1 / sampler.density).mean()), rel=1e-12)
        torch.testing.assert_close(plain, torch.ones_like(plain))


@pytest.mark.parametrize("k", [0.2, 0.7])
def test_pareto_k_of_generalised_pareto_draws(k):
    values = stats.genpareto.rvs(k, size=200_000, random_state=np.random.default_rng(1))
    tail = np.ceil(3 * np.sqrt(len(values)))
    shrunk = (tail * k + 10 * 0.5) / (tail + 10)
    assert abs(pareto_k(values) - shrunk) < Z * (1 + k) / np.sqrt(tail)
    assert pareto_k(1e-6 * values) == pytest.approx(pareto_k(values))


def test_pareto_k_of_light_and_of_short_tails():
    assert pareto_k(np.random.default_rng(0).random(10_000)) < 0
    assert all(np.isnan(pareto_k(x)) for x in (np.arange(20.0), np.ones(1000), np.zeros(0)))


def test_save_and_load_restore_the_density_bit_for_bit(tmp_path):
    density = fit_density(probed(STEEP, "mirror", rates=20), Method.parse("ppots+mirror"), config={"why": "test"})
    density.save(tmp_path / "p.json")
    again = FittedDensity.load(tmp_path / "p.json")
    assert torch.equal(again.sampler.density, density.sampler.density)
    assert torch.equal(draws(again.sampler, 1000), draws(density.sampler, 1000))
    assert again.record["method"] == "ppots+mirror"
    assert again.record["forward_passes"] > 0
    assert set(again.record["diagnostics"]["variance_fitted"]) == {"value", "stderr", "n", "unit", "ci_low", "ci_high"}
    assert list(tmp_path.iterdir()) == [tmp_path / "p.json"], "no temporary file is left"


def test_bad_files_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "p.json"
    with pytest.raises(UserError, match="found nothing"):
        FittedDensity.load(path)
    good = fit_density(probed(STEEP, rates=8, masks=2), Method.parse("ppots")).record
    for bad, words in (
        ("{", "something broken"),
        (json.dumps({"schema": "other"}), "expected schema"),
        (json.dumps({**good, "density": [1.0, -1.0]}, default=str), "positive"),
        (json.dumps({"schema": good["schema"]}), "density"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=words):
            FittedDensity.load(path)


def test_coarse_strata_do_not_get_the_p_of_fine_ones():
    """g large and flat, v small and steep: the p of the fine limit would multiply the noise of 6 strata."""
    law = Law(tau2=0.0, h=lambda t: 20 + 0 * t, sd=lambda t: 1 + 6 * (1 - t) ** 8)
    profile = probed(law, rows=20, rates=24, masks=4)
    source, every = Stratified(), torch.arange(20)

    def noise(shared: float | None) -> float:
        if shared is None:
            sampler = fit(profile.moments, Stratified(), FitOptions(step_rows=32)).sampler
        else:
            points = optimal_square(profile.moments, Stratified(), shared=shared).sqrt().numpy()
            sampler = Tabulated(interpolated(profile.t.numpy(), points)).mix_uniform(0.05)
        return per_row_variance(profile.moments, source, [(sampler, every)], 32).value

    uniform = per_row_variance(profile.moments, source, [(Uniform(), every)], 32).value
    assert noise(0.0) > 1.5 * uniform, "the fine limit's p is worse than uniform here"
    assert noise(None) < 1.02 * uniform


def test_draws_fill_the_cells_as_the_density_says(fitted):
    t = draws(fitted.sampler)
    probability = fitted.sampler.density.reshape(64, 64).mean(1).numpy() / 64
    count = np.bincount((t.numpy() * 64).astype(int), minlength=64)
    assert stats.chisquare(count, probability * count.sum()).pvalue > TEST_FAILURE_RATE
    with pytest.raises(AssertionError):
        assert_mean(1.02 * fitted.sampler.weight(t), 1.0, "two per cent show")
    # Without noise: equally spaced u, an error of order 1 / n.
    even = fitted.sampler.icdf((torch.arange(1 << 18, dtype=torch.float64) + 0.5) / (1 << 18))
    assert float(fitted.sampler.weight(even).mean()) == pytest.approx(1.0, abs=4e-4)


@pytest.mark.parametrize("level", [2.0, 0.1, 1 / 3])
@pytest.mark.parametrize("text", ["ppots", "strats+ppots+mirror", "lowdisc+ppots"])
def test_flat_losses_are_uniform_for_every_source_at_any_level(text, level):
    method = Method.parse(text)
    profile = profile_of(torch.full((6, 23, 3), level))
    sampler = fit(profile.moments, method.source, FitOptions(family="tabulated")).sampler
    assert sampler.density.eq(1).all()
    rows = Rows(torch.arange(257), 257, torch.ones(257, 4, dtype=torch.bool), torch.arange(4))
    plain_text = text.replace("+ppots", "").replace("ppots", "standard")
    flat = method.draw(Key(11, 7), rows, sampler)
    plain = Method.parse(plain_text).draw(Key(11, 7), rows, Uniform())
    assert torch.equal(flat.t, plain.t)
    assert torch.equal(flat.coefficient, plain.coefficient)
    almost = fit(profile.moments, method.source, FitOptions()).sampler.density
    torch.testing.assert_close(almost, torch.ones_like(almost), atol=1e-3, rtol=0)


def test_losses_of_zero_leave_uniform_and_nan_is_not_taken_for_it():
    profile = profile_of(torch.zeros(6, 12, 3))
    assert optimal_square(profile.moments).eq(1).all()
    assert optimal_square(profile.moments, Stratified()).eq(1).all()
    assert optimal_square(profile_of(torch.full((6, 12, 3), torch.nan)).moments).isnan().all()


def test_smoothing_leaves_equal_points_and_the_level_alone():
    t = (np.arange(200) + 0.5) / 200
    assert interpolated(t, np.full(200, 0.1)).eq(0.1).all()
    rough = np.random.default_rng(0).random(200)
    smooth = interpolated(t, rough).numpy()
    assert smooth.std() < 0.75 * rough.std()
    assert smooth.mean() == pytest.approx(rough.mean(), rel=0.02)


def test_half_the_cost_makes_p_larger_by_the_root_of_two():
    """One view above t = 1/2 costs half: at equal second moments p jumps by sqrt 2 there."""
    law = Law(tau2=0.0, rho=1.0, h=lambda t: 3 + 0 * t, sd=lambda t: 1 + 0 * t)
    both = probed(law, "mirror", rows=40, rates=20, masks=20)
    half = probed(law, "mirror", rows=40, rates=20, masks=20, options=MethodOptions(mirror_below=0.5))
    one, other = (
        fit(p.moments, IID(), FitOptions(family="tabulated", uniform_share=0.0)).sampler for p in (both, half)
    )
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ratio = [float(s.weight(t)[0] / s.weight(t)[1]) for s in (one, other)]
    assert ratio[0] == pytest.approx(1.0, rel=0.05)
    assert ratio[1] == pytest.approx(2**0.5, rel=0.05)


def test_views_that_cancel_change_p():
    law = Law(tau2=0.0, rho=-1.0, h=lambda t: 1 + t, sd=lambda t: 8 * (1 - t))
    options = FitOptions(uniform_share=0.0)
    single, mirror = (
        fit(probed(law, m, rows=30).moments, IID(), options).sampler.density for m in ("standard", "mirror")
    )
    assert single[0] > 2 * single[-1], "one view's noise is large near 0"
    assert mirror[0] < 0.7 * mirror[-1], "two cancel it: g alone is left"


def test_a_fallback_is_told_and_a_family_asked_for_is_none():
    density = double_bump_fit()
    d = density.record["diagnostics"]
    assert density.record["kind"] == "tabulated"
    assert d["kl"] > d["kl_threshold"]
    assert "tabulated" in density.summary()
    assert "\n" not in density.fallback
    asked = fit_density(double_bump(), Method.parse("ppots"), FitOptions(family="tabulated"))
    assert (asked.record["kind"], asked.fallback) == ("tabulated", None)
    assert torch.equal(asked.sampler.density, density.sampler.density)


def test_a_fit_costlier_than_the_tabulated_one_is_not_used_whatever_its_kl(monkeypatch):
    monkeypatch.setattr("stabledllm.ppots.fit.KL_THRESHOLD", 10.0)
    assert fit(double_bump().moments, IID(), FitOptions()).kind == "epr", "the threshold lets it pass"
    density = fit_density(double_bump(), Method.parse("ppots"))
    assert density.record["kind"] == "tabulated"
    assert "second moment on held-out rows" in density.fallback
    asked = fit_density(double_bump(), Method.parse("ppots"), FitOptions(family="tabulated"))
    assert torch.equal(asked.sampler.density, density.sampler.density)
    variance = "variance_fitted"
    assert density.record["diagnostics"][variance] == asked.record["diagnostics"][variance], "judged as what is used"


def test_dearer_than_counts_the_cost():
    profile = probed(STEEP, "mirror", rates=20, options=MethodOptions(mirror_below=0.5))
    every = torch.arange(len(profile.rows))
    good = [(fit(profile.moments, IID(), FitOptions()).sampler, every)]
    low = [(Tabulated([1.9, 0.1]), every)]
    assert dearer_than(profile.moments, good, good) is None
    assert dearer_than(profile.moments, good, low) is None
    second = [weighted_moment(profile.moments, p).mean() for p in (low, good)]
    cost = [float(p[0][0].cdf(profile.edges).diff() @ profile.cost) for p in (low, good)]
    assert cost[0] == pytest.approx(1.95)
    assert dearer_than(profile.moments, low, good) == pytest.approx(
        float(second[0] * cost[0] / second[1] / cost[1]) - 1
    )


def test_a_fit_without_convergence_falls_back(monkeypatch):
    monkeypatch.setattr("stabledllm.ppots.epr._OPTIONS", {"maxiter": 1})
    monkeypatch.setattr("stabledllm.ppots.fit.KL_THRESHOLD", 10.0)
    density = fit_density(profile_with_root(1 + MIDDLE), Method.parse("ppots"))
    assert density.record["kind"] == "tabulated"
    assert "none of 20 starts converged" in density.fallback


def test_good_fits_are_kept_by_every_guard():
    """By the fit's own, although the points are noisy, and by those of what is recorded."""
    for seed in range(3):
        density = fit_density(probed(STEEP, rates=40, seed=seed), Method.parse("ppots"))
        assert (density.record["kind"], density.fallback) == ("epr", None)


@pytest.mark.slow
def test_diagnostics_of_a_known_law():
    law, density = known_fit()
    d = density.record["diagnostics"]
    m = law.second_moment((torch.arange(10_000) + 0.5) / 10_000)
    assert d["relative_ess"] == pytest.approx(float(1 / (m.sqrt().mean() * (1 / m.sqrt()).mean())), rel=0.1)
    assert d["pareto_k"] < 0.5
    assert d["variance_fitted"]["n"] == 200
    assert d["variance_fitted"]["value"] < d["variance_uniform"]["value"]
