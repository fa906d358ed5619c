"""AlphaScheduler in a plain reimplementation of the trainer that asks for it: mean and variance by enumeration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.integrations import AlphaScheduler
from stabledllm.noise.densities import Clipped, Tabulated
from stabledllm.noise.schedule import p_mask
from tests.oracle import Setting, all_masks, moments, objective_by_quadrature, panels, toy_row
from tests.statistical.cases import FITTED

EPS = 0.02
ROW = toy_row(4)


class Linear:
    """The trainer's own default schedule."""

    def alpha(self, i):
        return 1 - i

    def alpha_derivative(self, i):
        return -torch.ones_like(i)


def trainers_moments(scheduler, time_epsilon: float, row=ROW, breaks=()) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of the trainer's row loss: u ~ U[eps, 1], Bernoulli masks, weight -alpha'/(1 - alpha).

    Written from the interface alone: every mask is enumerated, u is integrated by quadrature.
    """
    u, du = panels(np.asarray(breaks), time_epsilon, 1.0)
    du = du / (1 - time_epsilon)
    i = torch.from_numpy(u)
    masked = (1 - scheduler.alpha(i)).numpy()
    weight = -scheduler.alpha_derivative(i).numpy() / masked
    held = all_masks(row.size).sum(1)
    law = masked[:, None] ** held * (1 - masked[:, None]) ** (row.size - held)
    value = weight[:, None, None] * row.masked_sums / row.size
    mean = np.einsum("u,us,usf->f", du, law, value)
    return mean, np.einsum("u,us,usf->f", du, law, value**2) - mean**2


def ends(density, time_epsilon: float) -> np.ndarray:
    """u at the edges of the density's cells."""
    return time_epsilon + (1 - time_epsilon) * np.concatenate(([0], np.cumsum(density) / np.sum(density)))


@pytest.mark.parametrize("density", [(1.0,), FITTED, (0.2, 0.5, 1.0, 2.0)])
def test_the_mean_is_the_standard_objective_of_loss_and_gradient(density):
    scheduler = AlphaScheduler(Tabulated(density), EPS)
    mean, _ = trainers_moments(scheduler, EPS, breaks=ends(density, EPS))
    np.testing.assert_allclose(mean, objective_by_quadrature(ROW, EPS), rtol=1e-9)
    np.testing.assert_allclose(mean, trainers_moments(Linear(), EPS)[0], rtol=1e-9)


@pytest.mark.parametrize("density", [FITTED, (0.2, 0.5, 1.0, 2.0)])
def test_the_variance_is_that_of_p_pots_in_this_library(density):
    _, variance = trainers_moments(AlphaScheduler(Tabulated(density), EPS), EPS, breaks=ends(density, EPS))
    np.testing.assert_allclose(variance, moments(Setting(density=density, eps=EPS), ROW)[1], rtol=1e-8)


def test_a_density_fitted_to_the_second_moment_lowers_the_variance_as_predicted():
    """p ~ sqrt(E[l^2 | t]) on 32 cells: variance (int sqrt)^2 - mean^2 up to the cells' width, below linear's."""
    cells = 32
    edges = np.linspace(0, 1, cells + 1)
    second = np.empty(cells)
    held = all_masks(ROW.size).sum(1)
    for j in range(cells):
        t, dt = panels(np.array([]), edges[j], edges[j + 1])
        p = EPS + (1 - EPS) * t[:, None]
        law = p**held * (1 - p) ** (ROW.size - held)
        second[j] = cells * dt @ (law * (ROW.masked_sums[:, 0] / ROW.size / p) ** 2).sum(1)
    density = tuple(np.sqrt(second))
    mean, variance = trainers_moments(AlphaScheduler(Tabulated(density), EPS), EPS, breaks=ends(density, EPS))
    predicted = np.sqrt(second).mean() ** 2 - mean[0] ** 2
    assert variance[0] == pytest.approx(predicted, rel=1e-9)
    linear = trainers_moments(Linear(), EPS)[1][0]
    assert variance[0] < 0.97 * linear


def test_without_time_epsilon_it_is_the_inverse_distribution_function():
    sampler, u = Tabulated(FITTED), torch.rand(200, dtype=torch.float64)
    scheduler = AlphaScheduler(sampler, 0.0)
    t = sampler.icdf(u)
    assert torch.equal(scheduler.alpha(u), 1 - t)
    torch.testing.assert_close(scheduler.weight(u), 1 / (sampler.log_prob(t).exp() * t))


def test_the_derivative_is_the_derivative():
    scheduler, step = AlphaScheduler(Tabulated(FITTED), EPS), 1e-7
    edges = torch.from_numpy(ends(FITTED, EPS))
    u = torch.cat((torch.tensor([0.001, EPS / 2]), torch.linspace(EPS + 0.001, 0.999, 97))).double()
    u = u[(u[:, None] - edges).abs().min(1).values > 2 * step]
    slope = (scheduler.alpha(u + step) - scheduler.alpha(u - step)) / (2 * step)
    torch.testing.assert_close(scheduler.alpha_derivative(u), slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        scheduler.weight(u), -scheduler.alpha_derivative(u) / (1 - scheduler.alpha(u)), rtol=1e-12, atol=0
    )


def test_it_falls_from_1_to_0_without_a_jump():
    scheduler = AlphaScheduler(Tabulated(FITTED), EPS)
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    alpha = scheduler.alpha(u)
    assert alpha[0] == 1
    assert float(alpha[-1]) == pytest.approx(0, abs=1e-12)
    assert bool((alpha.diff() < 0).all())
    assert float(-alpha.diff().min()) < 1e-4 / 0.5, "no step larger than 1 / min p"


def test_uniform_t_is_the_linear_schedule():
    u = torch.rand(100, dtype=torch.float64)
    torch.testing.assert_close(AlphaScheduler().alpha(u), 1 - u)
    torch.testing.assert_close(AlphaScheduler().weight(u), 1 / u)
    ours = p_mask((u - EPS) / (1 - EPS), EPS)
    torch.testing.assert_close(1 - AlphaScheduler(time_epsilon=EPS).alpha(u), torch.where(u < EPS, u, ours))


def test_floats_give_floats_and_tensors_keep_their_type_and_shape():
    scheduler = AlphaScheduler(Tabulated(FITTED))
    assert isinstance(scheduler.alpha(0.3), float)
    assert isinstance(scheduler(0.3), float)
    u = torch.rand(3, 2)
    for value in (scheduler(u), scheduler.alpha_derivative(u), scheduler.weight(u)):
        assert value.shape == u.shape
        assert value.dtype == torch.float32
    assert scheduler.reverse_mask_prob(0.2, 0.8) == pytest.approx((1 - scheduler(0.2)) / (1 - scheduler(0.8)))


def saved(path, method: str, density=FITTED, **more) -> str:
    record = more | {
        "schema": "stabledllm/p_of_t/1", "method": method, "kind": "tabulated", "forward_passes": 1,
        "density": Tabulated(density).density.tolist(),
        "diagnostics": {
            "kl": None, "relative_ess": 0.9, "pareto_k": None, "fallback": None,
            "variance_uniform": {"value": 1.0}, "variance_fitted": {"value": 0.5},
        },
    }  # fmt: skip
    path.write_text(json.dumps(record))
    return str(path)


def test_from_a_saved_file(tmp_path):
    scheduler = AlphaScheduler(saved(tmp_path / "p.json", "ppots"))
    u = torch.rand(50, dtype=torch.float64)
    assert torch.equal(scheduler.alpha(u), AlphaScheduler(Tabulated(FITTED)).alpha(u))
    assert AlphaScheduler(saved(tmp_path / "h.json", "ppots-head")).sampler.density is not None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: AlphaScheduler(saved(d / "p.json", "ppots+mirror")), ["fitted for 'ppots'", "'ppots+mirror'"]),
        (lambda d: AlphaScheduler(saved(d / "p.json", "lowdisc+ppots")), ["'lowdisc+ppots'"]),
        (lambda d: AlphaScheduler(saved(d / "p.json", "ppots", objective={"power": 1.0})), ["objective.power=1"]),
        (lambda d: AlphaScheduler(d / "nowhere.json"), ["nowhere.json", "found nothing"]),
        (lambda d: AlphaScheduler(Clipped()), ["unbiased", "'clipped'"]),
        (lambda d: AlphaScheduler(time_epsilon=1.0), ["time_epsilon", "found 1.0"]),
        (lambda d: AlphaScheduler().alpha(1.5), ["[0, 1]", "1.5"]),
        (lambda d: AlphaScheduler().weight(torch.tensor([0.5, -0.1])), ["[0, 1]"]),
    ],
)
def test_refusals(tmp_path, make, words):
    with pytest.raises(UserError) as refused:
        make(tmp_path)
    for word in words:
        assert word in str(refused.value), refused.value
