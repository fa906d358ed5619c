"""Meters for block diffusion: of the losses of whole rows, and of single blocks.

The noise of block diffusion is in ``noise/blocks.py``; a unit is one block of one row.

Legend: n requested evaluations, P tokens of a row's response, P_b of one of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.data.token_rows import refuse_given
from stabledllm.forward.meter import LossMeter
from stabledllm.loss import token_losses
from stabledllm.models.evaluating import evaluating_as_trained
from stabledllm.noise.blocks import BlockDraw, Blocks, Units
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key, Stream


def loss_meter(
    loaded, rows: Sequence[TokenRow], objective, *, block_size: int | None, as_trained: bool = False, **kwargs
) -> LossMeter:
    """A :class:`LossMeter`, or with a ``block_size`` a :class:`BlockMeter`, which alone reads ``as_trained``.

    >>> from stabledllm.forward.meter import MeteredModel
    >>> from stabledllm.noise.objective import Objective
    >>> loaded, rows = MeteredModel(None, mask_id=256, pad_id=257), [TokenRow([1, 2, 3, 4], prompt_length=1)]
    >>> type(loss_meter(loaded, rows, Objective(), block_size=2)).__name__
    'BlockMeter'
    """
    if block_size is None:
        return LossMeter(loaded, rows, objective, **kwargs)
    return BlockMeter(loaded, rows, objective, block_size=block_size, as_trained=as_trained, **kwargs)


class BlockMeter(LossMeter):
    """A meter of the row losses of block diffusion, ``sum_b (P_b / P) l_b``.

    t has shape (n,), one for all blocks of a row, or (n, ``ratios_per_row``).

    Args:
        block_size: response tokens of a block. as_trained: measure the losses of training where they differ from those
            of decoding: under shifted logits, a block's first token is then predicted from the noisy block before it.
            The rest is as for :class:`LossMeter`.

    >>> from stabledllm.forward.meter import MeteredModel
    >>> from stabledllm.noise.objective import Objective
    >>> loaded, rows = MeteredModel(None, mask_id=256, pad_id=257), [TokenRow([1, 2, 3, 4], prompt_length=1)]
    >>> BlockMeter(loaded, rows, Objective(), block_size=2).ratios_per_row
    2
    """

    row_copies = 2  # the clean row beside the noisy one
    form_names = ("block_ids",)

    def __init__(self, *args, block_size: int, as_trained: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        if as_trained:
            self.mode = evaluating_as_trained
        refuse_given(self.rows)
        self.blocks = Blocks.of(self.model, block_size)

    @cached_property
    def ratios_per_row(self) -> int:
        """The most blocks that a response lies in; each block has a mask ratio of its own."""
        return max(len(_cuts(row, self.blocks)) for row in self.rows)

    @cached_property
    def block_sizes(self) -> Tensor:
        """The response tokens P_b of each block, 0 where a row has fewer blocks, int64, (rows, ``ratios_per_row``)."""
        sizes = [[end - start for start, end in _cuts(row, self.blocks)] for row in self.rows]
        return torch.tensor([each + [0] * (self.ratios_per_row - len(each)) for each in sizes])

    @torch.no_grad()
    def block_losses(self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None) -> Tensor:
        """What each block adds to its row's loss, ``(P_b / P) l_b``: float64, shape (n, ``ratios_per_row``).

        Arguments and refusals are those of :meth:`view_losses`.
        """
        losses = torch.zeros(len(row), self.ratios_per_row, dtype=torch.float64)
        with self.mode(self.model):
            for chunk in self.chunks(row, method.views.count):
                batch, draw = self.draw(row, t, method, key, sampler or Uniform(), chunk)
                nll = self.cross_entropies(batch, draw).double()
                tokens = token_losses(nll, draw.mask, draw.coefficient, draw.active).sum(1)
                units = draw.units
                losses[chunk[units.row.cpu()], units.block.cpu()] = units.per_unit(tokens).cpu()
        self.require_finite(losses, row)
        return losses

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        batch, draw = super().draw(row, t, method, key, sampler, chunk, start)
        batch["block_ids"] = self.blocks.ids(batch["maskable"], batch["attention_mask"])
        return batch, draw

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> BlockDraw:
        t = t[:, None].expand(-1, self.ratios_per_row) if t.dim() == 1 else t
        return Units.draw_at(t, self.blocks, method, key, noise, sampler, numbered=True)


class UnitMeter(LossMeter):
    """A meter of the losses of single blocks: its rows are units, so that profile and fit need not know of blocks.

    A step's loss is ``1/n sum_rows sum_b (P_b / P) l_b / p``: the mean over its units of ``m (P_b / P) l_b / p``, m the
    mean number of blocks of a row. As every block's t is drawn from one p, the step's variance is that of ordinary
    rows with these losses, and p* is fitted to their second moment over units. "Row" i is a unit: the row cut off
    after the block, of which only the block is maskable. Its loss is ``m (P_b / P) l_b``, so that the mean over all
    units is the mean of the row losses. Losses are those of training: where a block's first token is predicted from the
    noisy block before it, that block has masks too, at a uniform t of its own. Under the token mean it is ``P_b l_b``
    divided by the mean P_b of the units: the share of a unit, like that of a row.

    Args:
        block_size: response tokens of a block. The rest is as for :class:`LossMeter`.

    >>> from stabledllm.forward.meter import MeteredModel
    >>> from stabledllm.noise.objective import Objective
    >>> loaded, rows = MeteredModel(None, mask_id=256, pad_id=257), [TokenRow([1, 2, 3, 4], prompt_length=1)]
    >>> meter = UnitMeter(loaded, rows, Objective(), block_size=2)
    >>> [row.input_ids for row in meter.rows], meter.weights  # the mean of the weights is 1
    ([[1, 2, 3], [1, 2, 3, 4]], tensor([1.3333, 0.6667], dtype=torch.float64))
    """

    form_names = ("block_ids",)
    mode = staticmethod(evaluating_as_trained)

    def __init__(self, loaded, rows: Sequence[TokenRow], objective, *, block_size: int, **kwargs):
        refuse_given(rows)
        self.blocks = Blocks.of(loaded.model, block_size)
        units, prompts, shares = [], [], []
        for row in rows:
            for start, end in _cuts(row, self.blocks):
                delimiter = [i for i in row.delimiter if start <= i < end]
                units.append(TokenRow(row.input_ids[:end], start, delimiter, origin=row.origin))
                prompts.append(row.prompt_length)
                shares.append((end - start) / row.response_length)
        super().__init__(loaded, units, objective, **kwargs)
        self.prompts = torch.tensor(prompts)
        self.units_per_row = len(units) / len(rows)
        self.weights = torch.tensor(shares, dtype=torch.float64) * self.units_per_row

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        batch, draw = super().draw(row, t, method, key, sampler, chunk, start)
        place = torch.arange(batch["maskable"].shape[1], device=batch["maskable"].device)
        # The blocks are those of the whole row, of whose response a unit holds the last block alone.
        response = place >= self.prompts[row[chunk]].to(place.device)[:, None]
        batch["block_ids"] = self.blocks.ids(response, batch["attention_mask"])
        if _starts_noisy(self.model):
            position = start + chunk.to(place.device)
            draw = self._with_block_before(draw, method, key, position, response, batch)
        return batch, draw

    def _with_block_before(
        self, draw: Draw, method: Method, key: Key, position: Tensor, response: Tensor, batch: dict[str, Tensor]
    ) -> Draw:
        """The draw with masks in the block before each unit too, whose tokens have no coefficient in it."""
        ids, maskable = batch["block_ids"], batch["maskable"]
        own = ids.masked_fill(~maskable, -1).amax(1, keepdim=True)
        before = response & (ids == own - 1)
        some = before.any(1, keepdim=True)
        rows = Rows(
            position=position,
            step_rows=int(position.max()) + 1,
            maskable=torch.where(some, before, maskable),
            token_index=torch.arange(ids.shape[1], device=ids.device),
            delimiter=torch.zeros_like(before),
        )
        t = key.row_uniforms(Stream.RATE, position, view=1)  # a unit's own t may be of view 0 at the same position
        beside = method.draw_at(t, key, rows, Uniform())
        masked = beside.mask & beside.active[..., None] & some[:, None]
        return replace(draw, mask=(draw.mask & draw.active[..., None]) | (masked & draw.active[..., None]))

    def _one_batch(self, row, t, method, key, sampler, chunk, start=0) -> tuple[Tensor, Tensor]:
        losses, active = super()._one_batch(row, t, method, key, sampler, chunk, start)
        if self.objective.normalization != "row":  # the draw holds the share, as each unit is a row of its own
            return losses, active
        return losses * self.weights[row[chunk]][:, None], active


def _starts_noisy(model: object) -> bool:
    """Whether training predicts a block's first token from the noisy block before it."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "shift_logits", False)) and getattr(config, "block_start", None) == "noisy"


def _cuts(row: TokenRow, blocks: Blocks) -> list[tuple[int, int]]:
    """Where the blocks of a row's response begin and end, as far as they hold response tokens."""
    lead = row.prompt_length % blocks.size if blocks.from_start else 0
    starts = range(row.prompt_length - lead, len(row), blocks.size)
    return [(max(at, row.prompt_length), min(at + blocks.size, len(row))) for at in starts]
