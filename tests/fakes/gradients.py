"""Row gradients of the oracle's toy model, drawn through the library's own noise: their exact law is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch

from stabledllm.forward.chosen import chosen
from stabledllm.gradient.per_row import GradientBatch, RowGradients
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Rows
from stabledllm.noise.objective import Objective
from tests.oracle import ToyRow, toy_row


class ToyGradients(RowGradients):
    """As RowGradients: the gradients with respect to the toy model's parameters; rows of every kind are as many."""

    def __init__(
        self,
        kinds: list[ToyRow] | None = None,
        n_rows: int = 3000,
        eps: float = 0.1,
        power: float = 0.0,
        normalization: str = "row",
        objective: Objective | None = None,
    ):
        self.kinds = kinds or [toy_row(size, seed) for size, seed in ((4, 0), (3, 1), (4, 2))]
        sizes = [self.kinds[i % len(self.kinds)].size for i in range(n_rows)]
        self.rows = [SimpleNamespace(maskable_count=lambda syrm, size=size: size) for size in sizes]
        self.objective, self.forwards = objective or Objective("power", normalization, eps=eps, power=power), 0
        self._sizes = {}
        self.size = self.kinds[0].table.shape[2] - 1
        self.parameters = {"theta": torch.zeros(self.size)}

    def gradients(self, row, t, method, key, sampler=None, start=0):
        view_squares = torch.zeros(len(row), dtype=torch.float64)
        losses, gradients = torch.zeros(len(row), dtype=torch.float64), torch.zeros(len(row), self.size).double()
        kind = row % len(self.kinds)
        for k, toy in enumerate(self.kinds):
            here = (kind == k).nonzero()[:, 0]
            if not len(here):
                continue
            _, draw = self.draw(row, t, method, key, sampler or Uniform(), here, start)
            table = torch.from_numpy(toy.table)
            code = (draw.mask * 2 ** torch.arange(toy.size)).sum(-1)
            share = draw.coefficient * draw.active[..., None] / draw.active.sum(1)[:, None, None]
            views = torch.einsum("bkp,bkpf->bkf", share, table[code])
            view_squares[here] = (views[..., 1:] ** 2).sum((1, 2)) * self.shares(method)[row[here]] ** 2
            each = views.sum(1) * self.shares(method)[row[here], None]
            losses[here], gradients[here] = each[:, 0], each[:, 1:]
            self.forwards += int(draw.active.sum())
        yield GradientBatch(torch.arange(len(row)), losses, gradients, view_squares)

    def draw(self, row, t, method, key, sampler, chunk, start=0):
        """The noise of evaluations of rows of one kind."""
        (kind,) = set((row[chunk] % len(self.kinds)).tolist())
        toy = self.kinds[kind]
        rows = Rows(
            position=start + chunk,
            step_rows=len(row),
            maskable=torch.ones(len(chunk), toy.size, dtype=torch.bool),
            token_index=torch.arange(toy.size),
            delimiter=torch.isin(torch.arange(toy.size), torch.tensor(toy.delimiter)).expand(len(chunk), -1),
        )
        method = replace(method, objective=self.objective)
        draw = self.noise_at(t[chunk], method, key, rows, sampler)
        batch = {"input_ids": rows.token_index.expand(len(chunk), -1), "attention_mask": rows.maskable}
        return None, chosen(draw, method, key, rows, batch, partial(answer, toy), mask_id=MASK)


MASK = -1


def answer(toy: ToyRow, ids, attention_mask, *, selected, targets=None) -> SimpleNamespace:
    """What a model says of partly masked copies of a toy row: the table's cross-entropies, or logits of two tokens."""
    masked = ids == MASK
    if targets is None:
        return SimpleNamespace(logits=logits_of(toy).repeat(len(ids), 1))
    state = (masked.long() << torch.arange(toy.size)).sum(1)
    return SimpleNamespace(nll=torch.from_numpy(toy.table[..., 0])[state][masked])


def logits_of(toy: ToyRow) -> torch.Tensor:
    """Logits of two tokens at each place of a toy row that is masked as a whole, (P, 2)."""
    first = torch.linspace(0.0, 3.0, toy.size, dtype=torch.float64)
    return torch.stack((first, torch.zeros_like(first)), dim=1)
