"""Training by block diffusion: a mixin for :class:`MDMTrainer` with everything that blocks change.

Legend: B rows, K views, L positions; a unit is a (row, block) pair.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.data.token_rows import refuse_given
from stabledllm.forward.blocks import BlockMeter
from stabledllm.method_checks import check_blocks
from stabledllm.noise.blocks import BlockDraw, Blocks, Units
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.noise.takes import check_tokens_in_blocks
from stabledllm.training.block_schedule import BlockSizes
from stabledllm.training.positions import StepRows
from stabledllm.training.streaming import check_rows
from stabledllm.training.trainer import MDMTrainer


def first_units(step: StepRows, counts: Tensor) -> tuple[Tensor, int]:
    """The number of the step's units before each row's own, int64, shape (ranks, n), and that of all its units.

    Args:
        counts: number of units of each row that any rank holds, int64, shape (ranks, n).
    """
    each = torch.ones(step.step_rows, dtype=torch.int64, device=counts.device)
    each[step.position[step.counted]] = counts[step.counted]
    before = each.cumsum(0) - each
    return torch.where(step.counted, before[step.position], 0), int(each.sum())


class InBlocks:
    """A mixin that draws and counts the units of a step instead of its rows, and evaluates in blocks as well.

    Args:
        block_size: response tokens of a block; or the sizes of the steps, of which evaluation takes the last.
        one_t: one t for all blocks of a row. The other arguments are those of :class:`MDMTrainer`.

    Raises:
        UserError: the method has no meaning in blocks.
    """

    form_names = ("block_ids",)

    def __init__(self, *, block_size: int | BlockSizes, one_t: bool = False, method: Method, **kwargs):
        check_blocks(method)
        check_tokens_in_blocks(method.objective.tokens)
        for rows in (kwargs["train_rows"], kwargs["eval_rows"]):
            check_rows(rows, refuse_given)
        self.one_t = one_t
        self.sizes = block_size if isinstance(block_size, BlockSizes) else BlockSizes((block_size,))
        self.last_blocks = Blocks.of(kwargs["model"], self.sizes.last)
        super().__init__(method=method, **kwargs)

    @property
    def blocks(self) -> Blocks:
        """The blocks of the step that comes, or that is being made."""
        return replace(self.last_blocks, size=self.sizes.at(self.state.global_step))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the block size of the step that ended beside a training loss where sizes change."""
        if "loss" in logs and self.sizes.steps:
            logs["block_size"] = self.sizes.at(self.state.global_step - 1)
        super().log(logs, start_time)

    def _fix_positions(self, batches: list[dict], device: torch.device) -> StepRows:
        step = super()._fix_positions(batches, device)
        counts = self._of_all_ranks([self.blocks.counts(b["maskable"]) for b in batches], device)
        first, total = first_units(step, counts)
        self._deal(batches, {"first_unit": first})
        for batch in batches:
            batch["step_units"] = total
        return step

    def _shown(self, key: Key, inputs: dict) -> dict:
        inputs = super()._shown(key, inputs)
        return inputs | {"block_ids": self.blocks.ids(inputs["maskable"], inputs["attention_mask"])}

    def _draw(self, key: Key, rows: Rows, inputs: dict) -> BlockDraw:
        units = Units.of(rows, self.blocks, inputs["first_unit"], inputs["step_units"])
        return units.draw(self.method, key, self.sampler, rows if self.one_t else None)

    def _count(self, draw: BlockDraw, rows: Rows, inputs: dict, tokens: Tensor, forwards: int) -> None:
        """Hand the units' draws, with what each unit adds to its row's loss, to the statistics."""
        units, losses = draw.units, draw.units.per_unit(tokens.sum(1))
        counted, weight = (inputs[name][units.row] for name in ("counted", "row_weight"))
        self.statistics.add(draw.drawn, units.rows, counted, losses, forwards, weight)

    def evaluation_meter(self, objective: Objective | None = None) -> BlockMeter:
        given = (self._metered(), self.eval_rows, objective or Objective())
        return BlockMeter(*given, block_size=self.last_blocks.size, as_trained=objective is not None)


class BlockTrainer(InBlocks, MDMTrainer):
    """Trains a masked diffusion model by block diffusion."""
