"""Noise of whole step gradients against a plain implementation in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.gradient import step_meter
from stabledllm.gradient import steps as step_gradients
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.step_meter import ADAM_BETA2, ADAM_EPS, StepMeter
from stabledllm.gradient.steps import StepGradients, heavy_tail, ratio
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key, Stream
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio
from stabledllm.variance.comparison import may_be_equal
from tests.checks.statistics import assert_mean
from tests.fakes.tiny import metered, model, rows
from tests.mutation.inject import noticed

DENSITY = Tabulated([2.0, 1.0, 0.5, 0.5])


def plain_steps(
    method: Method, sampler, net, data, n: int, steps: int, seed: int, first: int, token_mean: bool = False
) -> np.ndarray:
    """Step gradients as the mean of exact row gradients over the step's rows, or its tokens; (S, D)."""
    meter, out = RowGradients(metered(net), data, Objective()), []
    method = replace(method, objective=meter.objective)  # the mean over tokens is taken below
    for s in range(steps):
        key = Key(seed, first + s)
        index = (key.row_uniforms(Stream.RESAMPLE, torch.arange(n)) * len(data)).long()
        t = sampler.icdf(method.source.uniforms(key, n, torch.device("cpu")))
        found = torch.zeros(n, meter.size, dtype=torch.float64)
        for at, _, g, _ in meter.gradients(index, t, method, key, sampler):
            found[at] = g
        weight = np.array([data[i].response_length if token_mean else 1 for i in index.tolist()])
        out.append(np.average(found.numpy(), axis=0, weights=weight))
    return np.array(out)


@pytest.mark.parametrize("name", ["standard", "strats+ppots+mirror"])
def test_raw_clipped_and_update_equal_numpy(name):
    net, data, method = model(), rows(12), Method.parse(name)
    sampler, clip = method.sampler(DENSITY), 0.5
    meter = StepMeter(metered(net), data, Objective(), tokens_per_batch=90, clip=clip)
    meter.precondition(rows=4, steps=5, seed=2)
    found = meter.measure(method, sampler, rows=4, steps=6, seed=2)

    standard = plain_steps(Method(), Method().sampler(), net, data, 4, 5, 2, step_meter._STANDARD)
    second = (clipped(standard, clip) ** 2).mean(0)
    raw = plain_steps(method, sampler, net, data, 4, 6, 2, step_meter._STEP)
    own = clipped(raw, clip)
    update = own / (np.sqrt(ADAM_BETA2 * second + (1 - ADAM_BETA2) * own**2) + ADAM_EPS)
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


def test_the_token_mean_weighs_rows_by_their_tokens():
    net, data, method = model(), rows(12), Method(objective=Objective(normalization="token"))
    meter = StepMeter(metered(net), data, method.objective, tokens_per_batch=90)
    found = meter.measure(method, method.sampler(), rows=5, steps=4, seed=1)
    of_tokens, of_rows = (
        plain_steps(method, method.sampler(), net, data, 5, 4, 1, step_meter._STEP, token_mean)
        for token_mean in (True, False)
    )
    assert np.allclose(found.gram["raw"], of_tokens @ of_tokens.T, rtol=2e-5)
    assert not np.allclose(found.gram["raw"], of_rows @ of_rows.T, rtol=0.01), "or the rows are all of one length"


def test_a_subset_is_clipped_by_the_norm_of_all_parameters():
    net, data = model(), rows(12)
    sizes = {"rows": 4, "steps": 5, "seed": 2}
    whole = StepMeter(metered(net), data, Objective(), clip=0.5).measure(Method(), Method().sampler(), **sizes)
    part = StepMeter(metered(net), data, Objective(), clip=0.5, parameters=["blocks.0.ff_out.weight"])
    found = part.measure(Method(), Method().sampler(), **sizes)
    shrunk = [(g["clipped"].diagonal() / g["raw"].diagonal()) for g in (whole.gram, found.gram)]
    assert torch.allclose(*shrunk, rtol=1e-4)
    assert found.clipped_share == whole.clipped_share > 0


def test_a_token_that_the_second_moments_have_not_seen_is_not_the_whole_update():
    """No coordinate of Adam's update exceeds 1 / sqrt(1 - beta2), be its second moment 0."""
    net, data = model(), rows(60)
    meter = StepMeter(metered(net), data, Objective(), clip=1e9)
    meter.precondition(rows=8, steps=6, seed=0)
    usual = meter.measure(Method(), Method().sampler(), rows=8, steps=6, seed=0)
    bound = 1 / (1 - ADAM_BETA2)
    meter.rows = [replace(r, input_ids=[200 + i % 40, *r.input_ids[1:]]) for i, r in enumerate(data)]
    found = meter.measure(Method(), Method().sampler(), rows=8, steps=6, seed=0)
    unseen = 40 * net.config.hidden_size
    assert (meter.second_moment["embed.weight"][200:240] == 0).all()
    more = found.gram["update"].diagonal() - usual.gram["update"].diagonal()
    assert (more > 0).all(), "unseen tokens do count"
    assert (found.gram["update"].diagonal() < 3 * usual.gram["update"].diagonal() + bound * unseen).all()


def test_the_cosine_of_clipping_by_hand():
    g = torch.tensor([[6.0, 0.5], [5.0, 1.0], [0.2, 0.9], [0.1, 1.0], [0.0, 0.8]], dtype=torch.float64)
    c = torch.from_numpy(clipped(g.numpy(), 1.0))
    found = StepGradients({"raw": g @ g.T, "clipped": c @ c.T}, 4, 1.0, 0.6).clipping_cosine()

    def pairs(a, b):
        return np.mean([float(a[i] @ b[j]) for i in range(5) for j in range(5) if i != j])

    assert found.value == pytest.approx(pairs(g, c) / (pairs(g, g) * pairs(c, c)) ** 0.5)
    assert found.value < 0.95
    assert found.stderr > 0
    same = StepGradients({"raw": g @ g.T, "clipped": g @ g.T}, 4, 1.0, 0.0).clipping_cosine()
    assert same.value == pytest.approx(1.0)
    assert same.stderr == pytest.approx(0.0, abs=1e-7)


def made_up(seed: int, steps: int = 12, scale: float = 1.0) -> StepGradients:
    g = 1 + scale * torch.randn(steps, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return StepGradients({"raw": g @ g.T}, 4, 1.0, 0.0)


def test_other_figures_and_their_json():
    one = StepGradients({"raw": made_up(3).gram["raw"]}, 4, 2.0, 0.0)
    assert one.noise_scale().value == pytest.approx(4 * one.noise_to_signal().value)
    equal = one.at_equal_compute(Estimate(value=10.0, stderr=3.0, n=9, unit="(nats/param)²"))
    assert equal.value == pytest.approx(2 * one.per_row_variance().value - 10)
    assert equal.stderr == pytest.approx((4 * one.per_row_variance().stderr ** 2 + 9) ** 0.5)
    assert equal.unit == "(nats/param)²"
    record = StepGradients(dict.fromkeys(step_gradients.TRANSFORMS, one.gram["raw"]), 4, 2.0, 0.0).as_dict()
    assert set(record["raw"]["variance"]) == {"value", "stderr", "n", "unit", "ci_low", "ci_high"}, "Student's of 12"
    assert record["update"]["variance"]["unit"] == "", "Adam's update has no unit"
    assert record["raw"]["heavy_tail"], "12 steps are too few to tell"
    assert record["raw"]["pareto_k"] is None


def test_without_signal_there_is_no_ratio():
    """Opposite gradients: the estimate of the squared mean is below 0, and nothing may be divided by it."""
    g = torch.tensor([[1.0], [-1.0]] * 3, dtype=torch.float64)
    none = StepGradients({"raw": g @ g.T}, 4, 1.0, 0.0)
    assert none.mean_square().value < 0
    assert np.isnan(none.noise_to_signal().value)
    assert np.isnan(ratio(none, made_up(0), "raw").value)


def check_variance_of_vectors() -> None:
    found = np.array([made_up(seed).variance().value for seed in range(400)])
    assert_mean(found, 50.0, "trace of the covariance")


@pytest.mark.parametrize("wrong", ["mean of the norms", "variance of the norms"])
def test_mistake_12_a_variance_from_norms_is_noticed(wrong, monkeypatch):
    norms = {"mean of the norms": lambda k: k.diagonal().sqrt().mean(), "variance of the norms": norm_variance}
    monkeypatch.setattr(step_gradients, "_variance", lambda k: float(norms[wrong](k)))
    noticed(check_variance_of_vectors, match="trace of the covariance")


def norm_variance(k: torch.Tensor) -> torch.Tensor:
    return k.diagonal().sqrt().var()


def test_estimates_are_unbiased_and_their_errors_honest():
    check_variance_of_vectors()
    found = [made_up(seed) for seed in range(400)]
    variance = np.array([f.variance().value for f in found])
    assert_mean(variance, 50.0)
    assert_mean(np.array([f.mean_square().value for f in found]), 50.0)
    assert 0.7 < np.mean([f.variance().stderr for f in found]) / variance.std() < 1.4


def test_the_ratio_to_oneself_is_one_and_errors_of_shared_steps_cancel():
    one = made_up(0)
    assert ratio(one, one, "raw") == Ratio(1.0, 1.0, 1.0)
    scaled = StepGradients({"raw": one.gram["raw"] * 9}, 4, 1.0, 0.0)
    assert ratio(scaled, one, "raw").value == pytest.approx(1.0), "noise over signal has no unit"
    noisier = ratio(made_up(1, scale=2.0), one, "raw")
    assert noisier.value == pytest.approx(4.0, rel=0.5)
    assert noisier.ci_low < 4 < noisier.ci_high


def test_where_gradients_do_not_fit_they_are_projected(monkeypatch):
    net, data = model(), rows(12)
    whole = StepMeter(metered(net), data, Objective()).measure(Method(), Method().sampler(), rows=4, steps=5, seed=0)
    monkeypatch.setattr(step_meter, "_BYTES", 0)
    wide = StepMeter(metered(net), data, Objective()).measure(Method(), Method().sampler(), rows=4, steps=5, seed=0)
    # 8,192 places: products are off by about a hundredth of the norms.
    norms = whole.gram["raw"].diagonal().sqrt()
    assert ((wide.gram["raw"] - whole.gram["raw"]).abs() < 0.06 * torch.outer(norms, norms)).all()
    assert not torch.equal(wide.gram["raw"], whole.gram["raw"])


def test_update_needs_second_moments_and_heavy_tails_are_told():
    meter = StepMeter(metered(model()), rows(12), Objective())
    assert set(meter.measure(Method(), Method().sampler(), rows=2, steps=4, seed=0).gram) == {"raw", "clipped"}
    assert heavy_tail(0.9)
    assert not heavy_tail(0.2)
    assert heavy_tail(float("nan")), "too few steps to tell: not to be trusted"


def test_an_interval_of_a_variance_is_not_below_0():
    """Of 8 steps, one of which is far out, Student's interval begins below 0."""
    g = torch.eye(8, dtype=torch.float64) * torch.tensor([1.0, 1.2, 0.9, 1.1, 0.8, 1.0, 1.3, 6.0], dtype=torch.float64)
    found = StepGradients({"raw": g @ g.T}, rows=8, cost=1.0, clipped_share=0.0)
    plain = found.per_row_variance()
    assert plain.value < 2 * plain.stderr
    assert 0 < plain.interval()[0] < plain.value < plain.interval()[1]
    assert found.variance().interval()[0] > 0


def test_four_steps_do_not_tell_how_large_a_rarer_one_is():
    """Their squares differ a thousandfold: no interval is given, and no method is said to differ by it."""
    g = torch.eye(4, dtype=torch.float64) * torch.tensor([0.1, 0.2, 0.15, 5.0], dtype=torch.float64)
    found = StepGradients({"raw": g @ g.T + 1}, rows=8, cost=1.0, clipped_share=0.0)
    assert found.variance().value > 0
    assert math.isnan(found.variance().interval()[1])
    assert found.variance().as_dict()["stderr"] is None
    assert may_be_equal(found.variance(), Estimate(value=1e6, stderr=1.0, n=99)) is None, "not told"


def test_steps_of_one_size_keep_the_interval_of_many_directions():
    """The chi-square interval of 4 steps in 100 directions is far narrower than that of 4 numbers."""
    noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = StepGradients({"raw": noise @ noise.T}, rows=8, cost=1.0, clipped_share=0.0).variance().interval()
    assert low < 100 < high < 25 * low
