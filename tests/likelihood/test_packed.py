"""Rows of a pass laid end to end: the same values and gradients of every estimator, from fewer positions."""

import itertools
from dataclasses import replace

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep
from stabledllm.preference import draws as of_pairs
from stabledllm.preference.draws import Pair
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood.models import ROWS, gradient_of_parts, tiny

LONG = [*ROWS, TokenRow([1, *[2, 3] * 6], prompt_length=1), TokenRow([4, 4, 6], prompt_length=1)]
HOW = {
    "bound": BoundEstimator(budget=4, tokens_per_batch=60),
    "bound of tokens": BoundEstimator("mirror", 4, tokens_per_batch=60, of_tokens=True),
    "espo": ESPO(2, tokens_per_forward=60),
    "coupled": Coupled(1, True, 60),
    "one-step": OneStep(2, True, 60, prompt_share=0.5),
}


def seen_by(model, draws) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Values, the gradient of a weighted sum of them, and the positions that went through the model."""
    positions = []
    hook = model.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0].numel()))
    values = draws.values(model)
    hook.remove()
    slopes = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    return values, gradient_of_parts(model, draws, slopes), sum(positions)


@pytest.mark.parametrize("name", HOW)
def test_packed_responses_have_the_same_values_and_gradient(name):
    model = tiny()
    found = [
        seen_by(model, replace(HOW[name], packing=packing).draw(model, LONG, range(len(LONG)), seed=3))
        for packing in (False, True)
    ]
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=0, atol=1e-10)
    assert found[1][2] < found[0][2], "less padding"


@pytest.mark.parametrize("name", ["bound", "espo", "coupled"])
def test_in_blocks_too(name):
    model = tiny(block_size=2)
    found = [
        seen_by(model, replace(HOW[name], packing=packing).draw(model, LONG, range(len(LONG)), seed=3))
        for packing in (False, True)
    ]
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=0, atol=1e-10)


def test_packed_pairs():
    model, how = tiny(), of_pairs.BoundEstimator(budget=4, tokens_per_batch=60)
    pairs = [Pair(*both) for both in itertools.pairwise(LONG)]
    found = [
        seen_by(model, replace(how, packing=packing).draw(model, pairs, range(len(pairs)), seed=3))
        for packing in (False, True)
    ]
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=0, atol=1e-10)
    assert found[1][2] < found[0][2]
