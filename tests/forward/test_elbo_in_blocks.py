"""The ELBO of models that are trained in blocks: unbiased by enumeration of every mask of every block."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stabledllm import UserError, elbo
from stabledllm.data.rows import TokenRow, collate
from stabledllm.noise.blocks import Blocks
from stabledllm.noise.densities import Tabulated
from tests.checks.moments import check_mean, check_variance
from tests.checks.statistics import assert_mean
from tests.fakes.tables import block_tables, tiny_in_blocks
from tests.forward.test_elbo import exact_variance_of
from tests.oracle import all_masks, objective_by_counts, toy_row
from tests.statistical.cases import FITTED

MASK, COPIES, EPS, PROMPT = -1, 1200, 0.1, 2
SIZES = (3, 3, 1)
"""Tokens of the toy row's blocks of 3."""
TOYS = [toy_row(size, seed) for seed, size in enumerate(SIZES)]


class ToyBlocks(nn.Module):
    """A row in three blocks, each with cross-entropies of its own table, which its own masks alone decide."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(COPIES, TOYS[0].table.shape[2] - 1))
        self.config = SimpleNamespace(block_size=3, mask_token_id=None)

    def forward(self, noisy, attention_mask, *, selected, targets, block_ids):
        expected = [0] * PROMPT + [b + 1 for b, size in enumerate(SIZES) for _ in range(size)]
        assert (block_ids == torch.tensor(expected)).all()
        nll, start = [], PROMPT
        for toy in TOYS:
            own = noisy[:, start : start + toy.size] == MASK
            at = torch.from_numpy(toy.table)[(own.long() << torch.arange(toy.size)).sum(1)]
            nll.append(at[..., 0] + (at[..., 1:] * self.shift[noisy[:, 0]][:, None]).sum(-1))
            start += toy.size
        return SimpleNamespace(nll=torch.cat(nll, 1)[selected[:, PROMPT:]])


def copies() -> dict[str, torch.Tensor]:
    ids = torch.ones(COPIES, PROMPT + sum(SIZES), dtype=torch.int64)
    ids[:, 0] = torch.arange(COPIES)
    response = (torch.arange(ids.shape[1]) >= PROMPT).expand(COPIES, -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(response), "maskable": response}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("text", "budget"),
    [("standard", 4), ("lowdisc+fixedcount", 8), ("ppots+mirror", 4), ("lowdisc+fixedcount+mirror", 8), ("strats", 6)],
)
def test_mean_variance_gradient_and_error_by_enumeration(text, budget):
    """The variance is the sum of the blocks', each with a lattice or strata of its own."""
    model = ToyBlocks()
    density = Tabulated(FITTED) if "ppots" in text else None
    found = elbo(model, copies(), text, budget, density=density, eps=EPS, mask_id=MASK, tokens_per_batch=10**6)
    assert found.forwards == budget * COPIES
    loss = -found.value
    loss.sum().backward()
    samples = torch.cat((loss.detach()[:, None], model.shift.grad), 1)
    check_mean(samples, sum(toy.size * objective_by_counts(toy, EPS) for toy in TOYS), text)
    exact = sum(toy.size**2 * exact_variance_of(toy, text, found.draws, found.replicates) for toy in TOYS)
    check_variance(samples, exact, text)
    assert_mean(found.stderr**2, float(exact[0]), f"{text}, squared standard error")


@pytest.mark.statistical
@pytest.mark.parametrize("from_start", [False, True])
def test_a_tiny_model_has_the_bound_of_all_its_masks(from_start):
    model = tiny_in_blocks(from_start=from_start)
    row = TokenRow([5, 6, 7, 1, 2, 3, 4, 5], 3)
    exact = -sum(toy.size * objective_by_counts(toy, EPS)[0] for toy in block_tables(model, row))
    with torch.no_grad():
        found = elbo(model, [row] * 400, "lowdisc+fixedcount", 4, eps=EPS)
    assert_mean(found.value, exact, "the bound")
    assert abs(found.mean.value - exact) < 4.5 * found.mean.stderr


def test_a_row_in_one_block_has_the_noise_of_the_whole_response():
    ids = torch.tensor([[9, 9, 1, 2, 3]])

    class Seen(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight, self.config = nn.Parameter(torch.ones(())), SimpleNamespace(block_size=size, mask_token_id=0)

        def forward(self, noisy, attention_mask, *, selected, targets, **form):
            weight = torch.arange(5.0) * (noisy == 0).sum(1, keepdim=True)
            return SimpleNamespace(nll=weight[selected] * self.weight)

    rows = [TokenRow(ids[0].tolist(), 2)]
    assert torch.equal(elbo(Seen(8), rows).value, elbo(Seen(None), rows).value)


def test_a_rows_bound_does_not_depend_on_the_rows_beside_it():
    model = tiny_in_blocks()
    rows = [TokenRow([5, 1, 2, 3], 1), TokenRow([5, 6, 7, 1, 2, 3, 4, 5, 6, 7], 2)]
    with torch.no_grad():
        torch.testing.assert_close(elbo(model, rows).value[:1], elbo(model, rows[:1]).value)


def test_a_response_in_parts_is_refused():
    batch = collate([TokenRow([5, 6, 1, 2, 3], 2)], 0)
    batch["maskable"][0, 3] = False
    with pytest.raises(UserError, match=r"^elbo: expected response tokens next to each other .* row 0\.$"):
        elbo(tiny_in_blocks(), batch)


def test_the_tables_are_those_of_single_blocks():
    """What the enumeration rests on: the masks of other blocks change no cross-entropy of a block."""
    model, row = tiny_in_blocks(), TokenRow([5, 6, 7, 1, 2, 3, 4, 5], 3)
    response = torch.arange(len(row)) >= 3
    blocks = Blocks.of(model, 2).ids(response[None], torch.ones(1, len(row), dtype=torch.bool))
    ids = torch.tensor([row.input_ids])
    tables = block_tables(model, row)
    for states in itertools.islice(itertools.product(*(range(2**toy.size) for toy in tables)), 5, 40, 7):
        masked = torch.cat([torch.from_numpy(all_masks(toy.size)[s]) for toy, s in zip(tables, states, strict=True)])
        selected = torch.cat((torch.zeros(3, dtype=torch.bool), masked))[None]
        noisy = torch.where(selected, model.config.mask_token_id, ids)
        with torch.no_grad():
            nll = model(noisy, torch.ones_like(selected), selected=selected, targets=ids, block_ids=blocks).nll
        told = [toy.table[s, :, 0] for toy, s in zip(tables, states, strict=True)]
        torch.testing.assert_close(nll.double(), torch.cat([torch.from_numpy(x) for x in told])[masked])
