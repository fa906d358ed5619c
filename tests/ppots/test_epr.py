"""The EPR fit finds what it was made from, and depends on its data and options."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, check_grad

from stabledllm.ppots import epr
from stabledllm.ppots.epr import fit_epr, log_density, theta_of
from stabledllm.ppots.profile import rate_edges

T = (np.arange(70) + 0.5) / 70
WIDTH = np.full(70, 1 / 70)
FINE = np.clip((np.arange(4096) + 0.5) / 4096, T[0], T[-1])
SHAPES = {
    "mild": (1, 0.5, 0.3, 0.5, 1, 2, 2),
    "rises at the end": (0.01, 0.01, 0.01, 5, 3, 20, 20),
    "spike at 0": (0.1, 50, 0.1, 0.2, 0.5, 60, 2),
    "cup": (5, 5, 0.5, 0.1, 30, 30, 1.5),
    "flat": (1e-3, 1e-3, 1, 1e-2, 0.1, 1, 2),
}


def density(name: str, t: np.ndarray) -> np.ndarray:
    log_p = log_density(theta_of(dict(zip(epr.NAMES, SHAPES[name], strict=True))), t)
    p = np.exp(log_p - log_p.max())
    return p / p.mean()


@pytest.mark.parametrize("name", SHAPES)
def test_recovers_the_density_between_the_points_too(name):
    fit = fit_epr(T, WIDTH, 37.0 * density(name, T))
    model = np.exp(log_density(theta_of(fit.parameters), FINE))
    truth, model = density(name, FINE), model / model.mean()
    assert (truth * np.log(truth / model)).mean() < 1e-4
    p = fit.parameters
    assert min(p["a"], p["b"], p["A"], p["kappa"]) > 0
    assert min(p["r"], p["q"]) >= 0
    assert p["m"] > 1


def test_the_jacobian_is_the_derivative():
    random = np.random.default_rng(0)
    weight = random.random(70)
    for theta in epr._starts(random, 10):
        error = check_grad(
            lambda x: weight @ epr._log_square(x, T)[0], lambda x: weight @ epr._log_square(x, T)[1], theta
        )
        assert error < 1e-3


def test_nothing_overflows_at_the_corners_of_the_bounds():
    bounds, random = np.array(epr._BOUNDS), np.random.default_rng(0)
    for _ in range(200):
        value, jacobian = epr._log_square(bounds[np.arange(7), random.integers(0, 2, 7)].astype(float), T)
        assert np.isfinite(value).all()
        assert np.isfinite(jacobian).all()


def noisy(seed: int) -> np.ndarray:
    return density("rises at the end", T) * np.random.default_rng(seed).lognormal(0, 0.2, 70)


def check_fit_depends_on_its_options(fit) -> None:
    few = [fit(T, WIDTH, noisy(0), starts=k) for k in (1, 3, 20)]
    assert few[0].kl >= few[1].kl >= few[2].kl
    assert len(few[2].start_kls) == 20
    assert max(few[2].start_kls) > few[2].kl + 1e-3, "one start would not do"
    assert fit(T, WIDTH, noisy(0), starts=1, seed=0).parameters != fit(T, WIDTH, noisy(0), starts=1, seed=1).parameters
    assert fit(T, WIDTH, 1 + T).parameters != fit(T, WIDTH, 2 - T).parameters
    assert fit(T, WIDTH, noisy(0)) == fit(T, WIDTH, noisy(0))


def test_mistake_2_epr_that_fits_nothing_is_noticed():
    check_fit_depends_on_its_options(fit_epr)
    with pytest.raises(AssertionError):
        check_fit_depends_on_its_options(lambda t, w, points, **_: fit_epr(t, w, points, starts=1))
    with pytest.raises(AssertionError):
        check_fit_depends_on_its_options(lambda t, w, points, **kw: fit_epr(t, w, np.ones_like(t), **kw))


UNEVEN = rate_edges(70).numpy()
UNEVEN_T, UNEVEN_WIDTH = (UNEVEN[1:] + UNEVEN[:-1]) / 2, np.diff(UNEVEN)


@pytest.mark.parametrize("name", SHAPES)
def test_recovers_the_density_on_the_probes_own_cells(name):
    """The lowest cells are narrow: points count by their width."""
    points = density(name, UNEVEN_T)
    fit = fit_epr(UNEVEN_T, UNEVEN_WIDTH, points)
    assert fit.converged
    inside = np.clip(FINE, UNEVEN_T[0], UNEVEN_T[-1])
    truth, model = density(name, inside), np.exp(log_density(theta_of(fit.parameters), inside))
    assert (truth * np.log(truth / (model / model.mean()))).mean() < 1e-4


def test_the_width_of_a_cell_is_its_say_in_the_fit():
    rough = noisy(0)
    left, right = (fit_epr(T, w / w.sum(), rough) for w in (np.where(T < 0.5, 100.0, 1.0), np.where(T < 0.5, 1.0, 100)))

    def error(fit, half):
        log_ratio = (np.log(rough) - log_density(theta_of(fit.parameters), T))[half]
        return log_ratio.std()

    assert error(left, T < 0.5) < error(right, T < 0.5)
    assert error(right, T > 0.5) < error(left, T > 0.5)


def test_the_gradient_that_the_search_is_given_is_the_objectives(monkeypatch):
    seen = []

    def spy(objective, start, **_):
        seen.append(check_grad(lambda x: objective(x)[0], lambda x: objective(x)[1], start))
        return OptimizeResult(x=start, fun=0.0, success=True)

    monkeypatch.setattr("scipy.optimize.minimize", spy)
    fit_epr(UNEVEN_T, UNEVEN_WIDTH, density("cup", UNEVEN_T), starts=10)
    assert len(seen) == 10
    assert max(seen) < 1e-5


def test_more_starts_go_on_from_fewer():
    few, many = (fit_epr(T, WIDTH, noisy(0), starts=k) for k in (3, 20))
    assert many.start_kls[:3] == few.start_kls
    assert many.kl == min(many.start_kls)


def test_neither_scale_nor_seed_of_the_framework_matters():
    one, other = (fit_epr(T, WIDTH, scale * noisy(1)) for scale in (1.0, 1e-9))
    assert other.kl == pytest.approx(one.kl, rel=1e-4)
    np.random.seed(5)
    assert fit_epr(T, WIDTH, noisy(1)) == one


def test_a_search_cut_short_has_not_converged(monkeypatch):
    assert fit_epr(T, WIDTH, noisy(0)).converged
    monkeypatch.setattr(epr, "_OPTIONS", {"maxiter": 1})
    assert not fit_epr(T, WIDTH, noisy(0)).converged
