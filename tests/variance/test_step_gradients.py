"""Noise of whole step gradients against a plain implementation in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stabledllm.gradients.per_row import RowGradients
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.t_samplers import Tabulated
from stabledllm.objective import Objective
from stabledllm.variance import step_gradients
from stabledllm.variance.step_gradients import ADAM_EPS, StepGradients, StepMeter, heavy_tail, ratio
from tests.gradients.small import IDS, model, rows
from tests.statistics import assert_mean

DENSITY = Tabulated([2.0, 1.0, 0.5, 0.5])


def plain_steps(method: Method, sampler, net, data, n: int, steps: int, seed: int, first: int) -> np.ndarray:
    """Step gradients as the mean of exact row gradients, (S, D)."""
    meter, out = RowGradients(net, data, Objective(), **IDS), []
    for s in range(steps):
        key = Key(seed, first + s)
        index = (key.row_uniforms(Stream.RESAMPLE, torch.arange(n)) * len(data)).long()
        t = sampler.icdf(method.source.uniforms(key, n, torch.device("cpu")))
        found = torch.zeros(n, meter.size, dtype=torch.float64)
        for at, _, g in meter.gradients(index, t, method, key, sampler):
            found[at] = g
        out.append(found.mean(0).numpy())
    return np.array(out)


@pytest.mark.parametrize("name", ["standard", "strats+ppots+mirror"])
def test_raw_clipped_and_update_equal_numpy(name):
    net, data, method = model(), rows(12), Method.parse(name)
    sampler, clip = method.sampler(DENSITY), 0.5
    meter = StepMeter(net, data, Objective(), **IDS, tokens_per_batch=90, clip=clip)
    meter.precondition(rows=4, steps=5, seed=2)
    found = meter.measure(method, sampler, rows=4, steps=6, seed=2)

    standard = plain_steps(Method(), Method().sampler(), net, data, 4, 5, 2, step_gradients._STANDARD)
    second = (clipped(standard, clip) ** 2).mean(0)
    raw = plain_steps(method, sampler, net, data, 4, 6, 2, step_gradients._STEP)
    update = clipped(raw, clip) / (np.sqrt(second) + ADAM_EPS)
    for kind, g in (("raw", raw), ("clipped", clipped(raw, clip)), ("update", update)):
        assert np.allclose(found.gram[kind], g @ g.T, rtol=2e-5), kind
        assert found.variance(kind).value == pytest.approx(g.var(0, ddof=1).sum(), rel=1e-4)
        pairs = [float(a @ b) for i, a in enumerate(g) for j, b in enumerate(g) if i != j]
        assert found.mean_square(kind).value == pytest.approx(np.mean(pairs), rel=1e-3)
    assert found.per_row_variance().value == pytest.approx(4 * raw.var(0, ddof=1).sum(), rel=1e-4)
    assert found.clipped_share == np.mean(np.linalg.norm(raw, axis=1) > clip)
    assert found.cost == method.views.count
    assert all(p.grad is None for p in net.parameters())


def clipped(g: np.ndarray, clip: float) -> np.ndarray:
    return g * np.minimum(1, clip / np.linalg.norm(g, axis=1))[:, None]


def made_up(seed: int, steps: int = 12, scale: float = 1.0) -> StepGradients:
    g = 1 + scale * torch.randn(steps, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return StepGradients({"raw": g @ g.T}, 4, 1.0, 0.0)


def test_estimates_are_unbiased_and_their_errors_honest():
    found = [made_up(seed) for seed in range(400)]
    variance = np.array([f.variance().value for f in found])
    assert_mean(variance, 50.0)
    assert_mean(np.array([f.mean_square().value for f in found]), 50.0)
    assert 0.7 < np.mean([f.variance().stderr for f in found]) / variance.std() < 1.4


def test_the_ratio_to_oneself_is_one_and_errors_of_shared_steps_cancel():
    one = made_up(0)
    assert ratio(one, one, "raw") == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    scaled = StepGradients({"raw": one.gram["raw"] * 9}, 4, 1.0, 0.0)
    assert ratio(scaled, one, "raw")["value"] == pytest.approx(1.0), "noise over signal has no unit"
    noisier = ratio(made_up(1, scale=2.0), one, "raw")
    assert noisier["value"] == pytest.approx(4.0, rel=0.5)
    assert noisier["ci_low"] < 4 < noisier["ci_high"]


def test_where_gradients_do_not_fit_they_are_projected(monkeypatch):
    net, data = model(), rows(12)
    whole = StepMeter(net, data, Objective(), **IDS).measure(Method(), Method().sampler(), rows=4, steps=5, seed=0)
    monkeypatch.setattr(step_gradients, "_BYTES", 0)
    wide = StepMeter(net, data, Objective(), **IDS).measure(Method(), Method().sampler(), rows=4, steps=5, seed=0)
    # 8,192 places: products are off by about a hundredth of the norms.
    norms = whole.gram["raw"].diagonal().sqrt()
    assert ((wide.gram["raw"] - whole.gram["raw"]).abs() < 0.06 * torch.outer(norms, norms)).all()
    assert not torch.equal(wide.gram["raw"], whole.gram["raw"])


def test_update_needs_second_moments_and_heavy_tails_are_told():
    meter = StepMeter(model(), rows(12), Objective(), **IDS)
    assert set(meter.measure(Method(), Method().sampler(), rows=2, steps=4, seed=0).gram) == {"raw", "clipped"}
    assert heavy_tail(0.9)
    assert not heavy_tail(0.2)
    assert heavy_tail(float("nan")), "too few steps to tell: not to be trusted"
