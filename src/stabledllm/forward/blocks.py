"""Losses of block diffusion: of whole rows, and of one block at a time.

Block diffusion's own mathematics stands in ``noise/blocks.py``; a unit is a (row, block) pair.

Legend: n requested evaluations, P tokens of a row's response, P_b of one of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import LossMeter
from stabledllm.noise.blocks import BlockDraw, Units, block_ids
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key


def loss_meter(loaded, rows: Sequence[TokenRow], objective, *, block_size: int | None, **kwargs) -> LossMeter:
    """A :class:`LossMeter`, or with ``block_size`` a :class:`BlockMeter`."""
    if block_size is None:
        return LossMeter(loaded, rows, objective, **kwargs)
    return BlockMeter(loaded, rows, objective, block_size=block_size, **kwargs)


class BlockMeter(LossMeter):
    """Measures the rows' losses under block diffusion, ``sum_b (P_b / P) l_b``.

    t is of shape (n,), one for all blocks of a row, or (n, ``ratios_per_row``).

    Args:
        block_size: response tokens of a block. The rest as of :class:`LossMeter`.
    """

    row_copies = 2  # the clean row beside the noisy one
    form_names = ("block_ids",)

    def __init__(self, *args, block_size: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.block_size = block_size

    @cached_property
    def ratios_per_row(self) -> int:
        """Blocks of the longest response: each has a mask ratio of its own."""
        return max(-(-row.response_length // self.block_size) for row in self.rows)

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        batch, draw = super().draw(row, t, method, key, sampler, chunk, start)
        batch["block_ids"] = block_ids(batch["maskable"], batch["attention_mask"], self.block_size)
        return batch, draw

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> BlockDraw:
        most = self.ratios_per_row
        units = Units.of(noise, self.block_size, noise.position * most, noise.step_rows * most)
        block = units.rows.position - noise.position[units.row] * most
        own = t[units.row] if t.dim() == 1 else t[units.row, block]
        return units.fold(method.draw_at(own, key, units.rows, sampler))


class UnitMeter(LossMeter):
    """Measures one block at a time: its rows are units, so that profile and fit need not know of blocks.

    A step's loss is ``1/n sum_rows sum_b (P_b / P) l_b / p``: the mean over its units of ``m (P_b / P) l_b / p``, m the
    mean number of blocks of a row. With every block's t drawn from one p, the step's variance is thus that of ordinary
    rows with these losses, and p* is fitted to their second moment over units. "Row" i is a unit, cut off after its
    block, which alone is maskable, and its loss is ``m (P_b / P) l_b``; the mean over all units is the mean of the
    rows' losses. Under the token mean it is ``P_b l_b`` over the units' mean P_b, the unit's own share.

    Args:
        block_size: response tokens of a block. The rest as of :class:`LossMeter`.
    """

    form_names = ("block_ids",)

    def __init__(self, loaded, rows: Sequence[TokenRow], objective, *, block_size: int, **kwargs):
        units, prompts, shares = [], [], []
        for row in rows:
            for start in range(row.prompt_length, len(row), block_size):
                end = min(start + block_size, len(row))
                delimiter = [i for i in row.delimiter if start <= i < end]
                units.append(TokenRow(row.input_ids[:end], start, delimiter, origin=row.origin))
                prompts.append(row.prompt_length)
                shares.append((end - start) / row.response_length)
        super().__init__(loaded, units, objective, **kwargs)
        self.block_size, self.prompts = block_size, torch.tensor(prompts)
        self.units_per_row = len(units) / len(rows)
        self.of_row = torch.tensor(shares, dtype=torch.float64) * self.units_per_row

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        batch, draw = super().draw(row, t, method, key, sampler, chunk, start)
        attended = batch["attention_mask"]
        place = torch.arange(attended.shape[1], device=attended.device)
        behind = place - self.prompts[row[chunk]].to(place.device)[:, None]
        batch["block_ids"] = (behind // self.block_size + 1).clamp(min=0).masked_fill(~attended, -1)
        return batch, draw

    def _one_batch(self, row, t, method, key, sampler, chunk, start=0) -> tuple[Tensor, Tensor]:
        losses, used = super()._one_batch(row, t, method, key, sampler, chunk, start)
        if self.objective.normalization == "token":  # weighed by the draw, a unit being a row of its own
            return losses, used
        return losses * self.of_row[row[chunk]][:, None], used
