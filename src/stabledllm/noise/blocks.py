"""The noise of block diffusion, in which every block of a row's response has a mask ratio of its own.

Source: BD3-LM (arXiv:2503.09573): block b is predicted from the clean blocks before it and from its own
unmasked tokens.
The row loss is ``sum_b (P_b / P) l_b``, l_b the row loss (docs/mathematics.md#conventions) on the P_b tokens of
block b: the bound on the NLL per response token under decoding block by block. A unit is one block of one row; to
samplers, maskers and views it is a row, with its own t, maskable tokens and position.

Legend: B rows, L positions, S tokens of a block, U units (row, block) of a micro-batch, K views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.noise.views import Views


@dataclass(frozen=True)
class Blocks:
    """How the rows of a model are cut into blocks.

    The reference model's blocks begin with the response, and the prompt is one block of its own. The published models'
    are counted from the row's first token, so that a block may hold the prompt's end and the response's start.

    >>> rows = torch.tensor([[False, True, True, True]])
    >>> Blocks(2).counts(rows), Blocks(2, from_start=True).counts(rows)
    (tensor([2]), tensor([2]))
    """

    size: int
    """Tokens of a block."""
    from_start: bool = False
    """Whether they are counted from the row's first token, which stands first in its tensor."""

    @classmethod
    def of(cls, model: object, size: int) -> Blocks:
        """The blocks of ``size`` tokens as a model's configuration counts them."""
        return cls(size, bool(getattr(getattr(model, "config", None), "blocks_from_start", False)))

    def lead(self, maskable: Tensor) -> Tensor:
        """The tokens of the prompt in each row's first block with a response, int64, shape (B,)."""
        first = maskable.long().argmax(1)
        return first % self.size if self.from_start else torch.zeros_like(first)

    def counts(self, maskable: Tensor) -> Tensor:
        """The number of blocks with response tokens in each row, int64, shape (B,)."""
        tokens = maskable.sum(1)
        return torch.where(tokens > 0, (tokens + self.lead(maskable) + self.size - 1) // self.size, 0)

    def ids(self, maskable: Tensor, attention_mask: Tensor) -> Tensor:
        """The block of each token, not decreasing, -1 for padding; int64, shape (B, L).

        Blocks that begin with the response are 1, 2, ..., the prompt 0, and a token that is not maskable belongs to
        the block of the last maskable one before it.

        >>> rows, real = torch.tensor([[0, 1, 1, 1, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
        >>> Blocks(2).ids(rows, real), Blocks(2, from_start=True).ids(rows, real)
        (tensor([[ 0,  1,  1,  2, -1]]), tensor([[ 0,  0,  1,  1, -1]]))
        """
        if self.from_start:
            block = torch.arange(maskable.shape[1], device=maskable.device).expand(maskable.shape) // self.size
        else:
            block = (maskable.cumsum(1) + self.size - 1) // self.size
        return block.masked_fill(~attention_mask.bool(), -1)


def mean_forwards_in_blocks(
    views: Views, sampler: TSampler, size: Tensor, block_size: int, lead: Tensor | int = 0
) -> float:
    """The mean number of forwards of a row in blocks: one for each view that is active in any of its blocks.

    Exact for iid t; under other sources it treats the t of a row's blocks as independent.

    Args:
        size: maskable tokens P of each row of the data, shape (B,).
        lead: tokens of the prompt in each row's first block with a response, shape (B,), see :meth:`Blocks.lead`.

    >>> from stabledllm.noise.methods import Method, Uniform
    >>> mean_forwards_in_blocks(Method.parse("mirror").views, Uniform(), torch.tensor([6]), block_size=2)
    2.0
    """
    first = ((block_size - lead) % block_size * torch.ones_like(size)).clamp(max=size)
    whole, rest = (size - first) // block_size, (size - first) % block_size
    unused = (1 - sampler.cdf(views.reach(torch.full_like(size, block_size)))) ** whole[:, None]
    for part in (first, rest):
        one = 1 - sampler.cdf(views.reach(part.clamp(min=1)))
        unused = unused * torch.where(part[:, None] > 0, one, 1.0)
    return float((1 - unused).sum(1).mean())


@dataclass(frozen=True)
class BlockDraw(Draw):
    """The noise of a micro-batch in blocks, folded into rows: view k of a row holds view k of each of its blocks.

    ``t`` and ``weight`` belong to units, shape (U,), and the other tensors to rows. ``coefficient`` includes P_b / P.

    >>> one_row = Rows(torch.tensor([0]), 1, torch.ones(1, 4, dtype=torch.bool), torch.arange(4))
    >>> draw = Units.of(one_row, Blocks(2), torch.tensor([0]), 2).draw(Method(), Key(0, 0), Method().sampler())
    >>> draw.t.shape, draw.mask.shape
    (torch.Size([2]), torch.Size([1, 1, 4]))
    """

    units: Units
    drawn: Draw
    """The same noise before folding, in which each unit is a row."""


@dataclass(frozen=True)
class Units:
    """The units of a micro-batch, row by row, in the form that the noise is drawn for.

    Build them with :meth:`of`. With one block per row every number drawn is the same as for the rows themselves.

    >>> one_row = Rows(torch.tensor([0]), 1, torch.tensor([[False, True, True, True]]), torch.arange(4))
    >>> units = Units.of(one_row, Blocks(2), first=torch.tensor([0]), step_units=2)
    >>> units.share  # blocks of two and of one of the three tokens
    tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    rows: Rows
    """The units as rows of S tokens; ``position`` and ``step_rows`` count units of the whole step."""
    row: Tensor
    """Row of each unit, shape (U,)."""
    place: Tensor
    """Position in the row of each token of a unit, shape (U, S); meaningless where not maskable."""
    shape: tuple[int, int]
    """(B, L)."""

    @classmethod
    def of(cls, rows: Rows, blocks: Blocks, first: Tensor, step_units: int) -> Units:
        """The units of ``rows``: their blocks with the maskable tokens of each.

        Args:
            first: number of units of the step before each row's first unit, shape (B,). The units of a step are thus
                numbered without gaps, and a lattice or strata span them as they span rows.
            step_units: number of units of the whole step.
        """
        counts, tokens, lead = blocks.counts(rows.maskable), rows.maskable.sum(1), blocks.lead(rows.maskable)
        width = min(blocks.size, int((tokens + lead).max()))
        row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        block = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        ordinal = block[:, None] * blocks.size + torch.arange(width, device=row.device) - lead[row][:, None]
        order = (~rows.maskable).long().argsort(dim=1, stable=True)  # maskable tokens first, from left to right
        maskable = (ordinal >= 0) & (ordinal < tokens[row][:, None])
        place = order[row].gather(1, ordinal.clamp(min=0, max=order.shape[1] - 1))
        index = rows.token_index if rows.token_index.dim() == 2 else rows.token_index.expand(rows.maskable.shape)
        delimiter = None if rows.delimiter is None else rows.delimiter[row].gather(1, place) & maskable
        # A row that is repeated only to even out ranks has no position of its own, and its units may exceed the step's.
        position = (first[row] + block).clamp(max=step_units - 1)
        units = Rows(position, step_units, maskable, index[row].gather(1, place), delimiter)
        return cls(units, row, place, tuple(rows.maskable.shape))

    @property
    def share(self) -> Tensor:
        """The share P_b / P of each unit in its row's tokens, float64, shape (U,)."""
        tokens = self.rows.maskable.sum(1).double()
        return tokens / tokens.new_zeros(self.shape[0]).index_add_(0, self.row, tokens)[self.row]

    def per_unit(self, values: Tensor) -> Tensor:
        """The sum of ``values``, shape (B, L), over the maskable tokens of each unit, shape (U,)."""
        return (values[self.row].gather(1, self.place) * self.rows.maskable).sum(1)

    def draw(self, method: Method, key: Key, sampler: TSampler, sharing: Rows | None = None) -> BlockDraw:
        """Draw the t and the masks of every unit, and fold them into rows.

        Args:
            sharing: the rows, where one t is drawn for all blocks of a row; the masks are still those of each unit.
        """
        if sharing is None:
            return self.fold(method.draw(key, self.rows, sampler))
        u = method.source.uniforms(key, sharing.step_rows, sharing.position.device)[sharing.position]
        return self.fold(method.draw_at(sampler.icdf(u)[self.row], key, self.rows, sampler))

    @classmethod
    def draw_at(
        cls, t: Tensor, blocks: Blocks, method: Method, key: Key, rows: Rows, sampler: TSampler, *, numbered: bool
    ) -> BlockDraw:
        """Draw the masks of rows at a given t of each of their blocks, and fold them into rows.

        Args:
            t: mask ratio of each block, shape (B, M), M at least the number of any row's blocks.
            numbered: whether the units are numbered, M to a row; else each takes its row's position, so that its masks
                do not depend on M (the tokens' own indices keep those of a row's blocks apart).
        """
        most = t.shape[1]
        units = cls.of(rows, blocks, rows.position * most, rows.step_rows * most)
        placed = units.rows if numbered else replace(units.rows, position=rows.position[units.row])
        return units.fold(method.draw_at(t[units.row, units.block], key, placed, sampler))

    @property
    def block(self) -> Tensor:
        """Number of each unit within its row, from 0, int64, shape (U,)."""
        number = torch.arange(len(self.row), device=self.row.device)
        return number - torch.searchsorted(self.row, self.row)

    def fold(self, drawn: Draw) -> BlockDraw:
        """Turn the noise of units into that of their rows.

        A view that is active in some blocks of a row masks nothing in the others; each block's loss is the mean over
        the views that are active in that block.
        """
        row_active = torch.zeros(self.shape[0], drawn.active.shape[1], device=drawn.t.device).double()
        row_active = row_active.index_add_(0, self.row, drawn.active.double()) > 0
        views = row_active.sum(1).double()[self.row] / drawn.active.sum(1)
        factor = (self.share * views)[:, None, None] * drawn.active[..., None]
        return BlockDraw(
            t=drawn.t,
            weight=drawn.weight,
            mask=self._spread(drawn.mask & drawn.active[..., None]),
            coefficient=self._spread(drawn.coefficient * factor),
            active=row_active,
            units=self,
            drawn=drawn,
        )

    def _spread(self, values: Tensor) -> Tensor:
        """The values of units, shape (U, K, S), at their places in the rows, shape (B, K, L); 0 outside the blocks."""
        rows, length = self.shape
        spread = values.new_zeros(rows, length, values.shape[1])
        real = self.rows.maskable
        spread[self.row[:, None].expand_as(real)[real], self.place[real]] = values.transpose(1, 2)[real]
        return spread.transpose(1, 2)
