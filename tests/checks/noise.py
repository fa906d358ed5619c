"""Checks of the noise that the tests must pass and the mutation tests must see raise."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import EPS
from stabledllm.noise.streams import Key
from tests.checks.statistics import TEST_FAILURE_RATE, assert_mean
from tests.oracle import panels

DRAWS = 100_000


def rows(n: int, length: int, prompt: int = 0, padding: int = 0, delimiter: tuple[int, ...] = ()) -> Rows:
    """n rows with ``length`` maskable tokens between a prompt and padding."""
    width = prompt + length + padding
    maskable = torch.zeros(n, width, dtype=torch.bool)
    maskable[:, prompt : prompt + length] = True
    marks = torch.zeros_like(maskable)
    marks[:, list(delimiter)] = True
    return Rows(torch.arange(n), n, maskable, torch.arange(width), marks)


def draw_at(text: str, t: float, n: int = DRAWS, length: int = 4, eps: float = 0.0, **kwargs) -> Draw:
    """n draws of a method's masks at one t."""
    at = torch.full((n,), t, dtype=torch.float64)
    method = Method.parse(text, objective=Objective(eps=eps))
    sampler = method.sampler(Tabulated([1.0]))
    return method.draw_at(at, Key(11, 2), rows(n, length, **kwargs), sampler)


def uniform_p_value(values: Tensor) -> float:
    """Kolmogorov-Smirnov p-value of "these are independent uniforms on [0, 1]"."""
    return float(stats.kstest(values.numpy().ravel(), "uniform").pvalue)


def check_uniform(values: Tensor, what: str = "") -> None:
    """The values are uniform on [0, 1], at the suite's rate."""
    p = uniform_p_value(values)
    assert p > TEST_FAILURE_RATE, f"{what}: not uniform, p = {p:.2g}"


def cdf_knots(sampler: TSampler) -> np.ndarray:
    """Values of u between which ``icdf`` is smooth."""
    if isinstance(sampler, Tabulated):
        return np.cumsum(sampler.density.numpy() / len(sampler))
    return np.array([])


def check_weight_integral(sampler: TSampler) -> None:
    """E[weight] = 1 and weight = 1 / density, exactly: the integral over u of weight(icdf(u))."""
    u, du = panels(cdf_knots(sampler), 0.0, 1.0)
    t = sampler.icdf(torch.from_numpy(u))
    total = float((sampler.weight(t) * torch.from_numpy(du)).sum())
    assert abs(total - 1) < 1e-9, f"E[weight] = {total:.6g}"
    assert torch.allclose(sampler.weight(t) * sampler.log_prob(t).exp(), torch.ones_like(t), atol=1e-12)


def check_weight_by_drawing(text: str, sampler: TSampler, length: int = 5) -> None:
    """The weights that a method hands out have mean 1 over its own draws."""
    draw = Method.parse(text, objective=Objective(eps=EPS)).draw(Key(4, 9), rows(DRAWS, length), sampler)
    if draw.weight.std() == 0:
        assert bool((draw.weight == 1).all()), f"{text}: constant weight {float(draw.weight[0]):.6g}"
    else:
        assert_mean(draw.weight, 1.0, f"E[weight] of {text}")


def check_density(sampler: TSampler) -> None:
    """What is drawn has the density that ``log_prob`` states: Kolmogorov-Smirnov on its integral."""
    t = sampler.icdf(Key(8, 1).row_uniforms(1, torch.arange(DRAWS)))
    knots = sampler.icdf(torch.from_numpy(cdf_knots(sampler))).numpy()
    grid = np.unique(np.concatenate((np.linspace(0, 1, 4001), knots)))
    middle = torch.from_numpy((grid[1:] + grid[:-1]) / 2)
    mass = sampler.log_prob(middle).exp().numpy() * np.diff(grid)
    integral = np.concatenate(([0.0], np.cumsum(mass)))
    p = stats.kstest(np.interp(t.numpy(), grid, integral), "uniform").pvalue
    assert p > TEST_FAILURE_RATE, f"{sampler.name}: drawn t do not follow the density, p = {p:.2g}"


def check_support(sampler: TSampler) -> None:
    """All of [0, 1] is drawn: the ends of u reach the ends of t, where generation starts."""
    ends = sampler.icdf(torch.tensor([0.0, 1e-9, 1 - 1e-9, 1 - 2.0**-53], dtype=torch.float64))
    assert float(ends[0]) == 0.0, f"least t is {float(ends[0]):.3g}"
    assert float(ends[1]) < 1e-6, f"t near 0 is not drawn: {float(ends[1]):.3g}"
    assert float(ends[2]) > 1 - 1e-6, f"t near 1 is not drawn: {float(ends[2]):.3g}"
    assert float(ends[3]) <= 1.0


def mask_correlation(text: str, t: float) -> float:
    """Correlation over draws of one token's masks in the first two views."""
    mask = draw_at(text, t).mask.double()
    return float(torch.corrcoef(torch.stack((mask[:, 0].flatten(), mask[:, 1].flatten())))[0, 1])


def check_mirror(t: float) -> None:
    """Both marginals are t, the correlation is -t/(1-t) or -(1-t)/t, and the views cover min(1, 2t)."""
    mask = draw_at("mirror", t).mask.double()
    for view in (0, 1):
        assert_mean(mask[:, view].flatten(), t, f"share masked in view {view}")
    covered = ((mask[:, 0] + mask[:, 1]) > 0).double().flatten()
    assert_mean(covered, min(1.0, 2 * t), "joint coverage")
    expected = -min(t, 1 - t) / max(t, 1 - t)
    found = mask_correlation("mirror", t)
    assert abs(found - expected) < 0.01, f"mask correlation {found:.3f}, expected {expected:.3f}"


def check_isad_weights() -> None:
    """Each token's weight in ISAD as published has mean 1: its CE is divided by its own q_j, once."""
    each = draw_at("isad", 0.3, prompt=1, delimiter=(2,)).coefficient[:, 0] * 4
    assert_mean(each[:, 1], 1.0, "weight of another token")
    assert_mean(each[:, 2], 1.0, "weight of a delimiter")


def check_only_maskable(text: str) -> None:
    """Neither prompt nor padding is ever masked or weighed, whatever is marked there."""
    draw = draw_at(text, 0.97, n=500, prompt=3, padding=4, delimiter=(1, 4, 8))
    outside = torch.ones(draw.mask.shape[-1], dtype=torch.bool)
    outside[3:7] = False
    assert not bool(draw.mask[..., outside].any()), f"{text}: a token that is not maskable was masked"
    assert float(draw.coefficient[..., outside].abs().sum()) == 0.0


def check_strata(u_steps: list[Tensor], n: int, k: int) -> None:
    """Every step has floor(n/k) or floor(n/k) + 1 points in each stratum, the extra ones in n mod k strata."""
    for u in u_steps:
        counts = torch.bincount((u * k).long(), minlength=k)
        assert len(counts) == k
        assert set((counts - n // k).tolist()) <= {0, 1}, f"points per stratum: {counts.tolist()}"
        assert int((counts - n // k).sum()) == n % k


def check_row_marginals(u_steps: list[Tensor]) -> None:
    """The u of every single row is uniform over the steps."""
    stacked = torch.stack(u_steps)
    for row in range(stacked.shape[1]):
        check_uniform(stacked[:, row], f"row {row}")
