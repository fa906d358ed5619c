"""Complement views: every token in exactly one view, counts k and P - k, one forward where k = P."""

import pytest
import torch

from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.noise.views import ComplementPair
from tests.checks.moments import check_case
from tests.checks.noise import check_weight_by_drawing, draw_at
from tests.oracle import moments, toy_row
from tests.statistical.cases import FITTED, case


@pytest.mark.parametrize("t", [1e-9, 0.25, 0.6, 1.0])
def test_every_token_is_in_exactly_one_view(t):
    draw = draw_at("complement", t, n=300, length=7, prompt=2, padding=3)
    inside = torch.zeros(12, dtype=torch.long)
    inside[2:9] = 1
    assert bool((draw.mask.sum(1) == inside).all())
    assert torch.equal(draw.coefficient > 0, draw.mask)


def test_one_forward_where_nothing_is_left_for_the_second_view():
    """By the row's own P: 2 of 2 tokens at t = 0.6, 2 of 3 are not all."""
    maskable = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    rows = Rows(torch.arange(2), 2, maskable, torch.arange(3))
    draw = Method.parse("complement").draw_at(torch.tensor([0.6, 0.6]).double(), Key(0, 0), rows, Uniform())
    assert draw.active.tolist() == [[True, False], [True, True]]
    assert draw.noisy(torch.zeros(2, 3, dtype=torch.long), 9)[2].tolist() == [0, 1, 1]


def test_cost_by_rate_without_sizes_is_an_upper_bound():
    t = torch.tensor([0.1, 1.0], dtype=torch.float64)
    assert ComplementPair().cost(t).tolist() == [2, 2]
    assert ComplementPair().cost(t, torch.tensor([4, 20])).tolist() == [2, 1]
    assert ComplementPair().active(t).tolist() == [[True, True]] * 2
    assert ComplementPair().active(t, torch.tensor([4, 4])).tolist() == [[True, True], [True, False]]


def test_weights_written_out():
    """P = 2 under masses 1/4 and 3/4: k = 1 weighs 1 / (2 x 1/4) in both views, k = 2 weighs 1 / (2 x 3/4) in one."""
    rows = Rows(torch.arange(2), 2, torch.ones(2, 2).bool(), torch.arange(2))
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    draw = Method.parse("complement", objective=Objective(eps=0.0)).draw_at(t, Key(0, 0), rows, Tabulated([0.5, 1.5]))
    assert draw.weight.tolist() == pytest.approx([2.0, 2 / 3])
    # c_1 = 1, c_2 = 1/2 at eps = 0.
    assert draw.coefficient[0].sum(-1).tolist() == pytest.approx([2.0, 2.0])
    assert draw.coefficient[1, 0].tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.statistical
@pytest.mark.parametrize("length", [1, 4, 5])
def test_weights_have_mean_one(length):
    check_weight_by_drawing("complement", Tabulated(FITTED), length)


@pytest.mark.statistical
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_length(size):
    check_case(case("ppots+complement"), size, n=50_000)


def test_it_beats_two_independent_counts_here():
    row = toy_row(4)
    assert moments(case("complement").setting, row)[1][0] < moments(case("fixedcount+multisample").setting, row)[1][0]
