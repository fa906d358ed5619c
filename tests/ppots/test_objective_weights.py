"""Another objective and less noise are two things: p is derived for the objective chosen and never changes it."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.profile import probe
from tests.fakes.laws import nodes
from tests.fakes.meters import TableMeter
from tests.oracle import Setting, moments, objective_by_quadrature, toy_row
from tests.statistical.cases import EPS, FITTED

POWERS = (0.0, 0.5, 1.0, 2.0)
CELLS = 64


def meter(power: float) -> TableMeter:
    return TableMeter(3, n_rows=8, eps=0.05, power=power)


def fitted(power: float) -> Tabulated:
    """p as the probe and the fit find it, from enough masks to leave no noise to speak of."""
    profile = probe(meter(power), Method.parse("standard"), rows=8, rates=32, masks=400, seed=1)
    return fit(profile.moments, IID(), FitOptions(family="tabulated", uniform_share=0.0)).sampler


def second_moment(power: float) -> tuple[Tensor, Tensor]:
    """E_{x0, M}[l²] by enumeration at quadrature nodes of t, and the nodes' weights; each (CELLS, nodes)."""
    each = [nodes(j / CELLS, (j + 1) / CELLS, 8) for j in range(CELLS)]
    t, width = (torch.stack(x) for x in zip(*each, strict=True))
    return meter(power).moments(t.flatten())[1].mean(0).view_as(t), width


def under(power: float, sampler: Tabulated) -> float:
    """∫ E[l²] / p dt of the objective of that power."""
    moment, width = second_moment(power)
    inverse = (1 / sampler.density).view(CELLS, -1).mean(1, keepdim=True)
    return float((moment * width * inverse).sum())


def least(power: float) -> float:
    """(∫ sqrt(E[l²]) dt)², what no density goes below."""
    moment, width = second_moment(power)
    return float((moment.sqrt() * width).sum()) ** 2


@pytest.mark.parametrize("power", POWERS)
def test_the_fitted_p_is_the_best_for_its_own_objective(power):
    own = under(power, fitted(power))
    assert least(power) <= own < 1.015 * least(power)
    if power != 0:  # where the elbo's p is not the best one
        assert under(power, fitted(0.0)) > 1.03 * own


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    ("masker", "views"), [("bernoulli", "mirror"), ("fixedcount", "single"), ("complement", "single")]
)
def test_p_changes_the_variance_and_not_the_objective(power, masker, views):
    row, count = toy_row(4), 2 if views == "mirror" else 1
    objective = objective_by_quadrature(row, EPS, power)
    mean, variance = moments(Setting(masker, views, count, eps=EPS, power=power), row)
    other_mean, other_variance = moments(Setting(masker, views, count, density=FITTED, eps=EPS, power=power), row)
    assert mean == pytest.approx(objective, rel=1e-9)
    assert other_mean == pytest.approx(objective, rel=1e-9)
    assert not math.isclose(other_variance[0], variance[0], rel_tol=0.02)


def test_another_power_is_another_objective():
    values = [objective_by_quadrature(toy_row(4), EPS, power)[0] for power in POWERS]
    assert all(b < 0.9 * a for a, b in itertools.pairwise(values))
