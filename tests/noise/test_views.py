"""Which views are used and what they cost, with and without a threshold."""

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.noise.views import Mirror, MultiSample, Single

T = torch.tensor([0.0, 0.59, 0.6, 1.0], dtype=torch.float64)


def test_threshold_drops_the_second_view_from_t_on():
    assert Mirror(0.6).active(T).tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert Mirror(0.6).cost(T).tolist() == [2, 2, 1, 1]


def test_without_a_threshold_both_views_are_used_even_at_t_1():
    assert bool(Mirror().active(T).all())
    assert Mirror().cost(T).tolist() == [2] * 4


def test_costs_are_views():
    assert Single().cost(T).tolist() == [1] * 4
    assert MultiSample(3).cost(T.view(2, 2)).tolist() == [[3, 3], [3, 3]]
    assert MultiSample(3).active(T).shape == (4, 3)


@pytest.mark.parametrize("below", [0.0, -1.0, 1.2])
def test_bad_threshold_is_refused(below):
    with pytest.raises(UserError, match="mirror_below"):
        Mirror(below)


@pytest.mark.parametrize("count", [0, 1, 65])
def test_bad_number_of_views_is_refused(count):
    with pytest.raises(UserError, match="2 to 64 views"):
        MultiSample(count)
