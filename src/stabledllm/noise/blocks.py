"""Block diffusion: every block of a row's response is a unit with a t, a maskable set and a position of its own.

Source: BD3-LM (arXiv:2503.09573): block b is predicted from the clean blocks before it and from its own
unmasked tokens.
The row loss is ``sum_b (P_b / P) l_b``, l_b the row loss (docs/mathematics.md#conventions) on the P_b tokens of
block b: the bound on the NLL per response token that decoding block by block has. A unit is a row to samplers,
maskers and views.

Legend: B rows, L positions, S tokens of a block, U units (row, block) of a micro-batch, K views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.noise.views import Views


def block_counts(maskable: Tensor, size: int) -> Tensor:
    """Blocks of ``size`` maskable tokens (the last may be shorter) of each row, int64, shape (B,)."""
    return (maskable.sum(1) + size - 1) // size


def block_ids(maskable: Tensor, attention_mask: Tensor, size: int) -> Tensor:
    """0 for the prompt, 1, 2, ... for the blocks, -1 for padding; int64, shape (B, L).

    A token that is not maskable belongs to the block of the last maskable one before it.
    """
    return ((maskable.cumsum(1) + size - 1) // size).masked_fill(~attention_mask.bool(), -1)


def mean_forwards_in_blocks(views: Views, sampler: TSampler, size: Tensor, block_size: int) -> float:
    """Forwards that a row in blocks pays on average: one for each view that any of its blocks uses.

    Exact for iid t; under other sources the t of a row's blocks are taken for independent.

    Args:
        size: maskable tokens P of each row of the data, shape (B,).
    """
    whole, rest = size // block_size, size % block_size
    unused = (1 - sampler.cdf(views.reach(torch.full_like(size, block_size)))) ** whole[:, None]
    last = 1 - sampler.cdf(views.reach(rest.clamp(min=1)))
    return float((1 - unused * torch.where(rest[:, None] > 0, last, 1.0)).sum(1).mean())


@dataclass(frozen=True)
class BlockDraw(Draw):
    """The noise of a micro-batch in blocks, folded into rows: view k of a row holds view k of each of its blocks.

    ``t`` and ``weight`` are of units, shape (U,); the rest is of rows. ``coefficient`` already holds P_b / P.
    """

    units: Units
    drawn: Draw
    """The same noise of the units as rows of their own."""


@dataclass(frozen=True)
class Units:
    """The units of a micro-batch, row by row, as the noise sees them.

    Build them with :meth:`of`; with one block per row every number drawn is that of the rows themselves.
    """

    rows: Rows
    """The units as rows of S tokens; ``position`` and ``step_rows`` count units of the whole step."""
    row: Tensor
    """Row of each unit, shape (U,)."""
    place: Tensor
    """Position in the row of each of the unit's tokens, shape (U, S); means nothing where not maskable."""
    shape: tuple[int, int]
    """(B, L)."""

    @classmethod
    def of(cls, rows: Rows, size: int, first: Tensor, step_units: int) -> Units:
        """The units of ``rows`` in blocks of ``size`` maskable tokens.

        Args:
            first: units of the step before each row's first, shape (B,): the step's n points then lie on its units,
                without gaps, and a lattice or strata span them as they span rows.
            step_units: units of the whole step.
        """
        counts, tokens = block_counts(rows.maskable, size), rows.maskable.sum(1)
        width = min(size, int(tokens.max()))
        row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        block = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        ordinal = block[:, None] * size + torch.arange(width, device=row.device)
        order = (~rows.maskable).long().argsort(dim=1, stable=True)  # maskable tokens first, from left to right
        maskable = ordinal < tokens[row][:, None]
        place = order[row].gather(1, ordinal.clamp(max=order.shape[1] - 1))
        index = rows.token_index if rows.token_index.dim() == 2 else rows.token_index.expand(rows.maskable.shape)
        delimiter = None if rows.delimiter is None else rows.delimiter[row].gather(1, place) & maskable
        # A row repeated only to even out ranks has no place of its own, and may be longer than the step.
        position = (first[row] + block).clamp(max=step_units - 1)
        units = Rows(position, step_units, maskable, index[row].gather(1, place), delimiter)
        return cls(units, row, place, tuple(rows.maskable.shape))

    @property
    def share(self) -> Tensor:
        """P_b / P of each unit, float64, shape (U,)."""
        tokens = self.rows.maskable.sum(1).double()
        return tokens / tokens.new_zeros(self.shape[0]).index_add_(0, self.row, tokens)[self.row]

    def per_unit(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each unit of ``values``, shape (B, L); shape (U,)."""
        return (values[self.row].gather(1, self.place) * self.rows.maskable).sum(1)

    def draw(self, method: Method, key: Key, sampler: TSampler) -> BlockDraw:
        """t of every unit and the masks, folded into rows."""
        return self.fold(method.draw(key, self.rows, sampler))

    def fold(self, drawn: Draw) -> BlockDraw:
        """Units' draws as rows'. A view that some blocks of a row use and others do not masks nothing in the others;
        each block's loss is the mean over the views that it uses itself."""
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
        """From (U, K, S) to (B, K, L), 0 outside the blocks."""
        rows, length = self.shape
        spread = values.new_zeros(rows, length, values.shape[1])
        real = self.rows.maskable
        spread[self.row[:, None].expand_as(real)[real], self.place[real]] = values.transpose(1, 2)[real]
        return spread.transpose(1, 2)
