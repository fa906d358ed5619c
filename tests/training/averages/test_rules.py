"""Profiles of the averages: they sum to 1, are what the recursion gives, and have the widths that the paper states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from stabledllm.config.settings import AverageSettings
from stabledllm.training.averages.fitting import fit
from stabledllm.training.averages.rules import Rule, exponent, rules_of

RULES = [
    Rule("ema", 0.5), Rule("ema", 0.99), Rule("ema", 1e-9), Rule("tail", 1.0), Rule("power", 0.28), Rule("power", 0.1),
    Rule("power", 0.05), Rule("power", 0.001),
]  # fmt: skip


def profile(rule: Rule, n: int) -> np.ndarray:
    return rule.profile(np.arange(1, n + 1, dtype=float), n)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_the_recursion_gives_the_profile_which_sums_to_1(rule, n):
    weights = np.zeros(n)
    for step in range(n):
        weights += rule.move(step + 1) * (np.eye(n)[step] - weights)
    np.testing.assert_allclose(weights, profile(rule, n), rtol=1e-9, atol=1e-12)
    assert profile(rule, n).sum() == pytest.approx(1, abs=1e-12)
    assert (profile(rule, n) >= 0).all()
    assert not rule.profile(np.array([n + 1.0, n + 9.0]), n).any(), "later steps do not count"


def test_an_ema_is_proportional_to_the_powers_of_its_decay():
    weights = profile(Rule("ema", 0.9), 12)
    np.testing.assert_allclose(weights[1:] / weights[:-1], 1 / 0.9)


@pytest.mark.parametrize("width", [0.28, 0.1, 0.05])
def test_a_power_function_has_its_width(width):
    """The sd over the steps of a long run, as a share of it; gamma by its formula (EDM2, section 3.1)."""
    n = 200_000
    places, weights = (np.arange(n) + 0.5) / n, profile(Rule("power", width), n)
    mean = (weights * places).sum()
    assert math.sqrt((weights * (places - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)
    gamma = exponent(width)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(width**2, rel=1e-9)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-4)


def test_the_exponents_that_the_paper_states():
    """EDM2: widths 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize(
    ("share", "steps", "before"), [(1.0, 9, 0), (0.25, 100, 75), (0.7, 10, 3), (0.001, 10, 9), (0.34, 3, 1)]
)
def test_a_tail_is_of_the_last_share_of_the_steps_and_one_at_least(share, steps, before):
    assert Rule("tail", share).begins_after(steps) == before


def test_the_rules_of_settings_in_the_order_of_their_keys():
    settings = AverageSettings(power=[0.1], ema=[0.99, 0.9], tail=[0.5])
    assert [rule.name for rule in rules_of(settings)] == ["ema-0.99", "ema-0.9", "tail-0.5", "power-0.1"]
    assert settings.count == 4
    assert rules_of(AverageSettings()) == []


@pytest.mark.parametrize("rule", [Rule("ema", 0.8), Rule("tail", 1.0), Rule("power", 0.1)], ids=lambda rule: rule.name)
def test_the_same_as_torch_s_averaged_model(rule):
    """``AveragedModel`` counts the averages before it, from 0, and copies the first weights."""

    def move(averaged, current, before):
        for ours, theirs in zip(averaged, current, strict=True):
            ours.lerp_(theirs, rule.move(int(before) + 1))

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    kinds = {"ours": AveragedModel(model, multi_avg_fn=move)}
    if rule.kind == "tail":
        kinds["torch's"] = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    seen = []
    for _ in range(9):
        with torch.no_grad():
            model.weight.normal_()
        seen.append(model.weight.detach().clone())
        for averaged in kinds.values():
            averaged.update_parameters(model)
    expected = sum(w * value for w, value in zip(profile(rule, 9), seen, strict=True))
    for averaged in kinds.values():
        torch.testing.assert_close(averaged.module.weight, expected)


STORED = [Rule("power", 0.05), Rule("power", 0.1)]


def test_a_stored_average_is_rebuilt_from_itself():
    found = fit([(rule, n) for n in (100, 200) for rule in STORED], Rule("power", 0.1), 200)
    np.testing.assert_allclose(found.coefficients, [0, 0, 0, 1], atol=1e-6)
    assert found.mismatch < 1e-6


@pytest.mark.parametrize(
    ("wanted", "at_most"), [(0.02, 0.07), (0.03, 0.021), (0.075, 0.002), (0.15, 0.005), (0.25, 0.04)]
)
def test_more_snapshots_come_nearer_and_the_coefficients_sum_to_1(wanted, at_most):
    """The mismatch is that of the profiles, computed here from all of them at once; docs/averages.md has the table."""
    n, rule, before = 960, Rule("power", wanted), 1.0
    for snapshots in (1, 4, 16):
        stored = [(each, n * k // snapshots) for k in range(1, snapshots + 1) for each in STORED]
        found = fit(stored, rule, n)
        assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)
        steps = np.arange(1, n + 1, dtype=float)
        made = sum(x * each.profile(steps, at) for x, (each, at) in zip(found.coefficients, stored, strict=True))
        assert found.mismatch == pytest.approx(abs(made - rule.profile(steps, n)).sum() / 2, abs=1e-9)
        assert found.growth == pytest.approx(sum(map(abs, found.coefficients)))
        assert found.mismatch < before
        before = found.mismatch
    assert before < at_most


def test_no_coefficients_are_nearer_than_those_that_are_found():
    """Least squares under the constraint: any step along it makes the distance of the profiles larger."""
    stored = [(each, n) for n in (50, 100) for each in STORED]
    steps = np.arange(1, 101, dtype=float)
    profiles = np.column_stack([rule.profile(steps, n) for rule, n in stored])
    wanted = Rule("power", 0.2).profile(steps, 100)
    x = np.array(fit(stored, Rule("power", 0.2), 100).coefficients)
    best = ((profiles @ x - wanted) ** 2).sum()
    generator = np.random.default_rng(0)
    for _ in range(50):
        move = generator.normal(size=4)
        assert ((profiles @ (x + 0.1 * (move - move.mean())) - wanted) ** 2).sum() > best


def test_a_long_run_is_fitted_in_pieces_as_in_one(monkeypatch):
    stored = [(each, n) for n in (500, 1000) for each in STORED]
    whole = fit(stored, Rule("power", 0.07), 1000)
    monkeypatch.setattr("stabledllm.training.averages.fitting._AT_ONCE", 64)
    parts = fit(stored, Rule("power", 0.07), 1000)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=1e-6)
    assert parts.mismatch == pytest.approx(whole.mismatch, rel=1e-6)
