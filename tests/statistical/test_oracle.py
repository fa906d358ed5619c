"""The oracle agrees with itself: two derivations of the objective, and the law of total variance."""

import numpy as np
import pytest

from tests.oracle import (
    Setting,
    conditional,
    count_coefficient,
    decomposition,
    moments,
    objective_by_counts,
    objective_by_quadrature,
    toy_row,
)
from tests.statistical.cases import BELLS, BIASED, OTHER_OBJECTIVES, UNBIASED, WINDOWS


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_omega_form_is_the_bernoulli_objective(size, eps):
    row = toy_row(size)
    np.testing.assert_allclose(objective_by_counts(row, eps), objective_by_quadrature(row, eps), rtol=1e-12)


def test_at_eps_0_every_count_weighs_one_over_k():
    for k in range(1, 6):
        assert count_coefficient(Setting(eps=0.0), 5, k) == pytest.approx(1 / k, rel=1e-12)


@pytest.mark.parametrize("case", UNBIASED + OTHER_OBJECTIVES + WINDOWS + BELLS, ids=str)
def test_every_unbiased_method_has_the_objective_as_its_mean(case):
    row, setting = toy_row(4), case.setting
    expected = setting.scale * objective_by_quadrature(row, setting.eps, setting.power, setting.window, setting.bell)
    np.testing.assert_allclose(moments(case.setting, row)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("case", BIASED, ids=str)
def test_a_biased_method_has_another_objective(case):
    row = toy_row(4)
    standard = objective_by_quadrature(row, case.setting.eps, case.setting.power)
    assert abs(moments(case.setting, row)[0] / standard - 1).max() > 0.02


def test_parts_add_up_to_the_total_variance():
    rows = [toy_row(3), toy_row(4), toy_row(5, 1)]
    for setting in (Setting(), Setting(density=(1.0, 2.0, 0.5)), Setting(views="mirror", count=2)):
        parts = decomposition(setting, rows)
        each = [moments(setting, row) for row in rows]
        means, variances = (np.array(x) for x in zip(*each, strict=True))
        total = variances.mean(0) + means.var(0)
        np.testing.assert_allclose(sum(parts.values()), [total[0], total[1:].sum()], rtol=1e-10)


def test_a_second_view_halves_only_the_mask_part():
    one, two = (decomposition(s, [toy_row(4)]) for s in (Setting(), Setting(views="multisample", count=2)))
    np.testing.assert_allclose(two["A"], one["A"] / 2, rtol=1e-10)
    np.testing.assert_allclose(two["B"], one["B"], rtol=1e-10)


def test_fixed_count_removes_the_noise_of_the_count():
    bernoulli, fixed = (decomposition(Setting(masker=m), [toy_row(4)]) for m in ("bernoulli", "fixedcount"))
    assert fixed["A"][0] < 0.2 * bernoulli["A"][0]


def test_standard_variance_is_infinite_at_eps_0():
    """v(t) grows like 1/t, so A's integral diverges; hence only a fixed count is tested at eps = 0."""
    mean, square = conditional(Setting(eps=0.0), toy_row(4), np.array([1e-3, 1e-4]))
    v = square - mean**2
    assert v[1, 0] / v[0, 0] == pytest.approx(10, rel=0.01)


def test_toy_gradient_is_the_derivative_of_its_objective():
    """By central differences of the exact loss at neighbouring parameters."""
    theta, h = (0.3, 0.5, 0.2), 1e-5
    gradient = objective_by_counts(toy_row(4), 0.1)[1:]
    for d in range(3):
        near = [tuple(x + s * h * (i == d) for i, x in enumerate(theta)) for s in (-1, 1)]
        low, high = (objective_by_counts(toy_row(4, theta=at), 0.1)[0] for at in near)
        assert (high - low) / (2 * h) == pytest.approx(gradient[d], rel=1e-7)
