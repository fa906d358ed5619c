"""The EPR fit finds what it was made from, and depends on its data and options."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from stabledllm.ppots import epr
from stabledllm.ppots.epr import fit_epr, log_density, theta_of

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
