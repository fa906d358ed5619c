"""Every estimator against its law by enumeration: mean and variance of the log-ratio and of the gradient."""

import math
from dataclasses import replace

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from tests.checks.statistics import assert_mean, assert_variance
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood import enumerated
from tests.likelihood.models import tiny

ROW = TokenRow([3, 1, 4, 1, 5], prompt_length=2)
RESPONSES = 3000
CASES = {
    "fixedcount": (BoundEstimator("fixedcount", 1, eps=0.0), enumerated.fixedcount, 0),
    "fixedcount of tokens": (BoundEstimator("fixedcount", 1, eps=0.0, of_tokens=True), enumerated.fixedcount, 0),
    "lowdisc+fixedcount": (BoundEstimator(budget=2, eps=0.0), enumerated.lattice_of_two, 0),
    "espo": (ESPO(), enumerated.espo, 0),
    "espo of tokens": (ESPO(of_tokens=True), enumerated.espo, 0),
    "espo in groups": (ESPO(strata=6), enumerated.espo, 0),
    "coupled": (Coupled(of_tokens=True), enumerated.coupled, 0),
    "one-step": (OneStep(of_tokens=True), enumerated.one_step, 0),
    "unigrpo": (UniGRPO(), enumerated.unigrpo, 0),
    "unigrpo, second of three": (UniGRPO(inner=3), lambda f, row: enumerated.unigrpo(f, row, 0.5), 4),
}


def near(model, along: torch.Tensor, step: float):
    """The model with its parameters moved."""
    moved = tiny()
    moved.load_state_dict(model.state_dict())
    start = torch.nn.utils.parameters_to_vector(moved.parameters()).detach()
    torch.nn.utils.vector_to_parameters(start + step * along, moved.parameters())
    return moved


def pairs_of_models() -> dict[str, tuple]:
    """Pairs whose scaled difference of values is a log-ratio, and the derivative along a direction."""
    policy = tiny(0)
    size = sum(p.numel() for p in policy.parameters())
    along = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old, step = near(policy, along, 0.05), 1e-4
    return {
        "log-ratio": (policy, old, 1.0),
        "gradient": (near(policy, along, step), near(policy, along, -step), 1 / (2 * step)),
    }


def check(case: str, what: str) -> None:
    """Hold the values under many numbers against the law."""
    estimator, law, step = CASES[case]
    one, other, scale = pairs_of_models()[what]
    draws = estimator.draw(one, [ROW] * RESPONSES, range(RESPONSES), seed=7, step=step)
    difference = scale * (draws.values(one) - draws.values(other))
    found = difference.sum(1) if estimator.of_tokens else difference.mean(1)
    features = (enumerated.log_probabilities(model, ROW) for model in (one, other))
    mean, variance = enumerated.moments(law(enumerated.difference(*features, scale), ROW))
    if case == "espo in groups":  # the responses of a group depend on each other
        groups = found.view(-1, 6)
        assert_mean(groups.mean(1), mean)
        assert groups.mean(1).var() < 0.8 * variance / 6
        found = groups[:, 2]
    assert_mean(found, mean)
    assert_variance(found, variance)


@pytest.mark.statistical
@pytest.mark.parametrize("what", ["log-ratio", "gradient"])
@pytest.mark.parametrize("case", CASES)
def test_mean_and_variance_are_those_of_the_enumerated_law(case, what):
    check(case, what)


@pytest.mark.statistical
@pytest.mark.parametrize("case", ["espo", "coupled", "one-step", "unigrpo"])
def test_draws_of_one_response_are_independent_but_for_what_has_no_noise(case):
    """Two draws have the mean of one and half its variance: ratio, count, order and masks of each are its own."""
    estimator, law, step = CASES[case]
    one, other, _ = pairs_of_models()["log-ratio"]
    draws = replace(estimator, draws=2).draw(one, [ROW] * RESPONSES, range(RESPONSES), seed=8, step=step)
    found = (draws.values(one) - draws.values(other)).sum(1)
    features = (enumerated.log_probabilities(model, ROW) for model in (one, other))
    mean, variance = enumerated.moments(law(enumerated.difference(*features), ROW))
    assert_mean(found, mean)
    assert_variance(found, variance / 2)


def test_which_of_them_are_the_bound():
    feature = enumerated.log_probabilities(tiny(), ROW)
    bound = enumerated.bound(feature, ROW)
    means = {name: enumerated.moments(law(feature, ROW))[0] for name, (_, law, _) in CASES.items()}
    for name in ("fixedcount", "lowdisc+fixedcount", "espo"):
        assert math.isclose(means[name], bound), name
    size = ROW.response_length
    assert math.isclose(means["unigrpo"], bound * size / (size + 1))
    for name in ("coupled", "one-step", "unigrpo, second of three"):
        assert abs(means[name] - bound) > 1e-3, name
