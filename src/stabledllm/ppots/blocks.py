"""The probe of block diffusion: its rows are (row, block) units, so that profile and fit need not know of blocks.

A step's loss is ``1/n sum_rows sum_b (P_b / P) l_b / p``: the mean over its units of ``m (P_b / P) l_b / p``, m the
mean number of blocks of a row. With every block's t drawn from one p, the step's variance is thus that of ordinary rows
with these losses, and p* is fitted to their second moment over units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import LossMeter
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.streams import Key


class UnitMeter(LossMeter):
    """Measures one block at a time: "row" i is a unit, cut off after its block, which alone is maskable.

    Its loss is ``m (P_b / P) l_b``; the mean over all units is the mean of the rows' losses. Under the token mean it is
    ``P_b l_b`` over the units' mean P_b, the unit's own share. Arguments as of
    :class:`LossMeter`, ``block_size`` required.
    """

    def __init__(self, model, rows: Sequence[TokenRow], objective, *, block_size: int, **kwargs):
        units, prompts, shares = [], [], []
        for row in rows:
            for start in range(row.prompt_length, len(row), block_size):
                end = min(start + block_size, len(row))
                delimiter = [i for i in row.delimiter if start <= i < end]
                units.append(TokenRow(row.input_ids[:end], start, delimiter, origin=row.origin))
                prompts.append(row.prompt_length)
                shares.append((end - start) / row.response_length)
        super().__init__(model, units, objective, **kwargs)
        self.unit_size, self.prompts = block_size, torch.tensor(prompts)
        self.units_per_row = len(units) / len(rows)
        self.of_row = torch.tensor(shares, dtype=torch.float64) * self.units_per_row

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        batch, draw = super().draw(row, t, method, key, sampler, chunk, start)
        attended = batch["attention_mask"]
        place = torch.arange(attended.shape[1], device=attended.device)
        behind = place - self.prompts[row[chunk]].to(place.device)[:, None]
        batch["block_ids"] = (behind // self.unit_size + 1).clamp(min=0).masked_fill(~attended, -1)
        return batch, draw

    def _one_batch(self, row, t, method, key, sampler, chunk, start=0) -> tuple[Tensor, Tensor]:
        losses, used = super()._one_batch(row, t, method, key, sampler, chunk, start)
        if self.objective.normalization == "token":  # weighed by the draw, a unit being a row of its own
            return losses, used
        return losses * self.of_row[row[chunk]][:, None], used
