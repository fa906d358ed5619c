"""Fast-dLLM v2's published objective against the keys that docs/blocks.md gives for it, by full enumeration."""

from itertools import permutations

import pytest
import torch

from stabledllm.build import build_objective
from stabledllm.config.settings import ObjectiveSettings
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.densities import Uniform
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.oracle import ToyRow, all_masks, toy_row

BLOCKS = {3: toy_row(3, seed=1), 2: toy_row(2, seed=2)}
"""The blocks of one row by their number of tokens."""


def published(toy: ToyRow) -> float:
    """The sum over a block's tokens of their cross-entropy in whichever of the two copies masks them.

    Tokens are masked independently with probability t, t uniform, in one copy, and the others in the other copy.
    """
    t, dt = torch.linspace(0, 1, 2001, dtype=torch.float64), torch.full((2001,), 1 / 2000, dtype=torch.float64)
    dt[[0, -1]] /= 2
    total, masks, full = 0.0, all_masks(toy.size), 2**toy.size - 1
    for state, mask in enumerate(masks):
        probability = float((dt * t ** mask.sum() * (1 - t) ** (toy.size - mask.sum())).sum())
        total += probability * float(toy.masked_sums[state, 0] + toy.masked_sums[full - state, 0])
    return total


def ours(toy: ToyRow, objective: Objective) -> float:
    """The mean over all counts and orders of the tokens of what ``complement`` adds to the sum over a row's tokens."""
    size, method = toy.size, Method.parse("complement", objective=objective)
    orders = torch.tensor(list(permutations(range(size))), dtype=torch.float64)
    t = ((torch.arange(size) + 0.5) / size).double().repeat_interleave(len(orders))
    uniforms = (orders / size).repeat(size, 1)[:, None].expand(-1, 2, -1)
    rows = Rows(torch.arange(len(t)), len(t), torch.ones(len(t), size, dtype=torch.bool), torch.arange(size))
    given = MaskInput(t, uniforms, method.views, rows, Uniform(), objective)
    mask, coefficient, weight = method.masker(given)
    coefficient = coefficient * objective.scale
    active = method.views.active(t, given.size)
    state = (mask.long() << torch.arange(size)).sum(-1)
    nll = torch.from_numpy(toy.table[..., 0])[state]
    # A step's token mean weighs a row by its tokens P, and a block's coefficient is over its own.
    drawn = Units.of(rows, Blocks(size), torch.arange(len(t)), len(t)).fold(Draw(t, weight, mask, coefficient, active))
    each = (drawn.coefficient * nll * drawn.mask).sum((1, 2)) / drawn.active.sum(1)
    return float((each * objective.row_weight(rows.maskable)).mean())


@pytest.mark.parametrize("size", BLOCKS)
def test_the_name_minimises_it(size):
    toy = BLOCKS[size]
    found = ours(toy, build_objective(ObjectiveSettings(name="fast-dllm", eps=0.0)))
    assert found == pytest.approx(published(toy), rel=1e-6)
    assert found == pytest.approx(2 * ours(toy, Objective("unweighted", "token", eps=0.0)))
    assert found != pytest.approx(ours(toy, Objective("elbo", "token", eps=0.0)) / 2, rel=1e-2), "it is not the bound"


def test_every_response_token_weighs_the_same_whatever_its_block():
    """Blocks of 3 and 2 tokens; where every cross-entropy is 1, both copies together score each token once."""
    rows = Rows(torch.tensor([0]), 1, torch.ones(1, 5, dtype=torch.bool), torch.arange(5))
    method = Method.parse("complement", objective=Objective("unweighted", "token", eps=0.0))
    total = torch.zeros(5, dtype=torch.float64)
    for step in range(400):
        drawn = Units.of(rows, Blocks(3), torch.tensor([0]), 2).draw(method, Key(1, step), Uniform())
        total += drawn.coefficient[0].sum(0) / drawn.active.sum(1) / 400 * 5
    assert total.tolist() == pytest.approx([0.5] * 5, abs=0.06)
