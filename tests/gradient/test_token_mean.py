"""A, B and C of the gradient of a step's token mean, and its predicted noise, against enumeration."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from stabledllm.gradient.components import decompose_gradient
from stabledllm.gradient.predicted import at_equal_compute, data_noise, step_noise, uniform_for
from stabledllm.gradient.profile import gradient_profile
from stabledllm.noise.methods import Method
from tests.checks.gradients import exact_noise
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, toy_row

pytestmark = pytest.mark.statistical
KINDS = [toy_row(size, seed) for size, seed in ((1, 0), (2, 1), (5, 2))]
SIZE = np.array([row.size for row in KINDS])


def exact(masker: str, share: np.ndarray) -> dict[str, float]:
    """Traces over rows of every kind equally often, their gradients times the share."""
    return exact_noise(Setting(masker, eps=0.1), KINDS, share)


@functools.cache
def profile(normalization: str):
    meter = ToyGradients(KINDS, 900, normalization=normalization)
    return gradient_profile(meter, Method.parse("fixedcount"), rows=150, rates=5, masks=2, seed=0)


@pytest.mark.parametrize("normalization", ["row", "token"])
def test_components_and_predictions(normalization):
    share = SIZE / SIZE.mean() if normalization == "token" else np.ones(3)
    truth, own = exact("bernoulli", share), profile(normalization)
    found = decompose_gradient(own)
    pairs = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"], "total": sum(truth.values())}
    for name, value in pairs.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - value) < 4.3 * estimate.stderr + 0.02 * value, name
        assert estimate.stderr < 0.25 * sum(truth.values())
    for name, masker in (("standard", "bernoulli"), ("fixedcount", "fixedcount")):
        noise = step_noise(own, Method.parse(name), uniform_for(own), 32, 1.0)
        wanted = exact(masker, share)
        estimate = noise.estimate()
        assert abs(estimate.value - sum(wanted.values())) < 4.3 * estimate.stderr + 0.02 * estimate.value, name
        level = at_equal_compute(noise, data_noise(own))
        assert abs(level.value - wanted["A"] - wanted["B"]) < 4.3 * level.stderr + 0.02 * level.value, name


def test_the_two_means_differ():
    token, rows = (exact("bernoulli", s) for s in (SIZE / SIZE.mean(), np.ones(3)))
    assert abs(token["C"] / rows["C"] - 1) > 0.2
    assert abs(token["A"] / rows["A"] - 1) > 0.2
