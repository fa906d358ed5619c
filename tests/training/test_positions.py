"""Positions of a step's rows, by hand."""

from __future__ import annotations

import torch

from stabledllm.training.positions import step_rows


def of(places, full, weights=None):
    places = torch.tensor(places)
    weights = torch.ones_like(places, dtype=torch.float64) if weights is None else torch.tensor(weights)
    return step_rows(places, weights, full)


def test_a_full_step_on_two_ranks():
    step = of([[8, 9, 12, 13], [10, 11, 14, 15]], 8)
    assert step.position[1].tolist() == [2, 3, 6, 7]
    assert step.counted.all()
    assert (step.step_rows, step.step_weight) == (8, 8.0)


def test_rows_repeated_from_the_epochs_start_weigh_nothing():
    """10 rows on 2 ranks x 4: the last step has two true rows, and six that only even out the ranks."""
    step = of([[8, 9, 0, 1], [2, 3, 4, 5]], 8)
    assert step.counted.tolist() == [[True, True, False, False], [False] * 4]
    assert step.step_rows == 2


def test_rows_repeated_within_the_only_step_are_counted_once():
    step = of([[0, 1, 2], [0, 1, 2]], 6)
    assert step.counted.tolist() == [[True] * 3, [False] * 3]
    assert step.step_rows == 3


def test_the_weight_is_that_of_true_rows():
    assert of([[4, 5], [0, 1]], 4, [[3.0, 4.0], [100.0, 100.0]]).step_weight == 7.0


def test_draws_are_float64_whatever_the_default_dtype():
    """The statistical tests run with float64 as default; a model trains with float32 as default."""
    from stabledllm.noise.methods import Method, Rows
    from stabledllm.noise.streams import Key

    assert torch.get_default_dtype() == torch.float32
    rows = Rows(torch.arange(7), 7, torch.ones(7, 5, dtype=torch.bool), torch.arange(5))
    for name in ("standard", "strats", "lowdisc", "lowdisc+fixedcount", "clipped+mirror"):
        method = Method.parse(name)
        draw = method.draw(Key(0, 0), rows, method.sampler())
        assert {draw.t.dtype, draw.weight.dtype, draw.coefficient.dtype} == {torch.float64}, name
