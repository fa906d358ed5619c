"""What one call of :func:`stabledllm.elbo` draws before its first forward pass, and how the passes run.

Legend: B rows, L positions, D draws of t per row, K views, R replicates, E evaluations of one forward pass, M blocks of
a row (1 for models of whole responses).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.forward.elbo_arguments import (
    check_numbers,
    checked_blocks,
    checked_id,
    checked_mask_id,
    checked_method,
    checked_numbers,
    checked_rows,
)
from stabledllm.forward.meter import filled_batches
from stabledllm.forward.nll import forward_nll
from stabledllm.loss import token_losses
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.philox import philox4x32
from stabledllm.noise.streams import Key
from stabledllm.runtime.finite import require_finite

LEAST_DRAWS = 4
"""The least number of draws that a source other than iid splits into two replicates, for a standard error."""


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn or fixed before the first forward pass of one call.

    >>> from stabledllm.data.rows import TokenRow
    >>> model = torch.nn.Linear(1, 1)  # of which a plan asks nothing but its device
    >>> options = {"seed": 0, "step": 0, "density": None, "replicates": None, "eps": 0.0, "tokens_per_batch": 6}
    >>> rows = [TokenRow([1, 2, 3], prompt_length=1)]
    >>> plan = make_plan(model, rows, "fixedcount", 4, mask_id=9, pad_id=None, numbers=None, **options)
    >>> plan.t.shape, [len(each) for each in plan.passes]  # 1 row, 1 block, 4 draws; 2 rows of 3 tokens in a pass
    (torch.Size([1, 1, 4]), [2, 2])
    """

    tensors: dict[str, Tensor]
    t: Tensor
    """Mask ratios, shape (B, M, D), the draws of one replicate next to each other."""
    number: Tensor
    """The number that stands for each row in its noise, int64, shape (B,)."""
    blocks: Blocks | None
    groups: int
    key: Key
    method: Method
    sampler: TSampler
    tokens_per_batch: int
    mask_id: int
    packing: bool = False
    """Whether the rows of a pass go through the model end to end."""

    @cached_property
    def passes(self) -> list[Tensor]:
        """The evaluations of each forward pass: row times D plus draw."""
        draws, copies = self.t.shape[2], 2 if self.blocks else 1  # the clean row beside the noisy one
        length = copies * self.tensors["attention_mask"].sum(1).repeat_interleave(draws)
        return list(filled_batches(length, self.method.views.count, self.tokens_per_batch))

    def run(self, model) -> Iterator[tuple[Tensor, int]]:
        """Yield, per forward pass, its contribution to each replicate's share of the ELBO, (B, R), and its rows."""
        b, _, draws = self.t.shape
        for chunk in self.passes:
            row, group = chunk // draws, chunk % draws // (draws // self.groups)
            tokens, _, forwards = self._losses(model, chunk)
            loss = tokens.sum(dim=(1, 2))
            require_finite(loss, f"elbo: losses of {type(model).__name__}")
            share = -loss * (self.tensors["maskable"].sum(1)[row].double() / draws).to(loss.dtype)
            zero = torch.zeros(b * self.groups, dtype=loss.dtype, device=loss.device)
            yield zero.index_add(0, (row * self.groups + group).to(loss.device), share).view(b, self.groups), forwards

    def run_tokens(self, model) -> Iterator[tuple[Tensor, int]]:
        """Yield, per forward pass, what each token adds to the mean of the replicates, (B, L), and its rows."""
        draws = self.t.shape[2]
        for chunk in self.passes:
            row = chunk // draws
            tokens, used, forwards = self._losses(model, chunk)
            require_finite(tokens, f"elbo: losses of {type(model).__name__}")
            share = -tokens.sum(1) * (self.tensors["maskable"].sum(1)[row].double() / draws).to(tokens.dtype)[:, None]
            one_pass = torch.zeros(self.tensors["maskable"].shape, dtype=tokens.dtype, device=tokens.device)
            whole = share.new_zeros(len(row), len(used)).index_copy(1, used.nonzero()[:, 0], share)
            yield one_pass.index_add(0, row.to(tokens.device), whole), forwards

    @cached_property
    def forward_rows(self) -> int:
        """Rows that go through one model, in all passes."""
        return sum(int(self._noise(chunk)[1].active.sum()) for chunk in self.passes)

    def weights(self) -> Tensor:
        """The importance weight of every draw of a model of whole responses, float64, shape (B, D); no forward."""
        out = torch.empty(self.t.shape[0] * self.t.shape[2], dtype=torch.float64, device=self.t.device)
        for chunk in self.passes:
            out[chunk] = self._noise(chunk)[1].weight.double()
        return out.view(len(self.t), -1)

    def _losses(self, model, chunk: Tensor) -> tuple[Tensor, Tensor, int]:
        """The part of each token of each view in the row losses of the evaluations of one forward pass.

        Returns:
            the parts, shape (E, K, positions that are used); which positions those are, bool, shape (L,); forward rows.
        """
        batch, draw, used = self._noise(chunk)
        form = {"block_ids": self.blocks.ids(batch["maskable"], batch["attention_mask"])} if self.blocks else {}
        nll, forwards = forward_nll(model, batch, draw, self.mask_id, form=form, packing=self.packing)
        return token_losses(nll, draw.mask, draw.coefficient, draw.active), used, forwards

    def _noise(self, chunk: Tensor) -> tuple[dict[str, Tensor], Draw, Tensor]:
        """The rows of the evaluations of one forward pass, their noise, and which of the L positions they use."""
        draws = self.t.shape[2]
        row = chunk // draws
        used = self.tensors["attention_mask"][row].any(0)
        batch = {name: value[row][:, used] for name, value in self.tensors.items()}
        noise = Rows(
            position=self.number[row] * draws + chunk % draws,
            step_rows=(int(self.number.max()) + 1) * draws,
            maskable=batch["maskable"],
            token_index=(batch["attention_mask"].cumsum(1) - 1).clamp(min=0),
            delimiter=batch.get("delimiter"),
        )
        t = self.t[row, :, chunk % draws]
        if self.blocks:
            drawn = Units.draw_at(t, self.blocks, self.method, self.key, noise, self.sampler, numbered=False)
        else:
            drawn = self.method.draw_at(t[:, 0], self.key, noise, self.sampler)
        return batch, drawn, used


def make_plan(
    model, rows, method, budget, *, seed, step, density, replicates, eps, tokens_per_batch, mask_id, pad_id, numbers
) -> Plan:
    """The plan of a call of :func:`~stabledllm.elbo` with these arguments; raises as that does.

    >>> from stabledllm.data.rows import TokenRow
    >>> options = {"seed": 0, "step": 0, "density": None, "replicates": None, "eps": 0.0, "tokens_per_batch": 64}
    >>> rows = [TokenRow([1, 2, 3], prompt_length=1)]
    >>> make_plan(torch.nn.Linear(1, 1), rows, "mirror", 4, mask_id=9, pad_id=0, numbers=[7], **options).number
    tensor([7])
    """
    method = checked_method(method, eps)
    check_numbers(budget=budget, replicates=replicates, tokens_per_batch=tokens_per_batch, seed=seed, step=step)
    if budget % (views := method.views.count):
        raise UserError(f"elbo: expected a budget divisible by the {views} views of '{method.name}', found {budget}.")
    draws = budget // views
    if draws % (groups := _replicates(method, draws) if replicates is None else replicates):
        raise UserError(f"elbo: expected replicates that divide the {draws} draws of a row, found {groups}.")
    mask_id, device = checked_mask_id(model, mask_id), next(model.parameters()).device
    tensors = checked_rows(rows, method, mask_id if pad_id is None else checked_id("pad_id", pad_id), mask_id)
    tensors = {name: value.to(device) for name, value in tensors.items()}
    sampler, (blocks, most) = method.sampler(density), checked_blocks(model, tensors["maskable"])
    calls = [_call_seed(seed, step, block) for block in range(most)]
    numbers = checked_numbers(numbers, len(tensors["maskable"]))
    u = [_uniforms(method, call, numbers, draws, groups) for call in calls]
    t = sampler.icdf(torch.stack(u, 1)).to(device)
    position = torch.tensor(numbers, device=device)
    return Plan(tensors, t, position, blocks, groups, Key(calls[0], 0), method, sampler, tokens_per_batch, mask_id)


def _replicates(method: Method, draws: int) -> int:
    """The default number of replicates."""
    if method.source.independent:
        return draws
    return 2 if draws >= LEAST_DRAWS and draws % 2 == 0 else 1


def _uniforms(method: Method, call: int, numbers: Sequence[int], draws: int, groups: int) -> Tensor:
    """The u of every draw, shape (B, D): one run of the source per row and replicate, each with a key of its own.

    They are drawn on the CPU, which gives the same bits: launching many small draws on an accelerator takes longer.
    """
    # Points that are independent anyway need no separate runs.
    runs = 1 if method.source.independent else groups
    keys = [Key(call, number * runs + run) for number in numbers for run in range(runs)]
    u = [method.source.uniforms(key, draws // runs, torch.device("cpu")) for key in keys]
    return torch.cat(u).view(len(numbers), draws)


def _call_seed(seed: int, step: int, block: int) -> int:
    """A 64-bit seed for one call and number of block; in its keys, rows and replicates take the place of the step."""
    zero = torch.zeros((), dtype=torch.int64)
    low, high = philox4x32(zero, torch.tensor(block), torch.tensor(step), zero, seed)[:2].tolist()
    return high << 32 | low
