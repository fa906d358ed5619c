"""Meters of gradients in blocks: of single blocks as rows, of whole rows, and of steps.

Given its t the loss of a block does not depend on the other blocks' noise, so that the gradient of a row is a sum of
independent parts, one for each block.

Legend: n rows, m blocks of a row at most.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from stabledllm.forward.blocks import BlockMeter, UnitMeter
from stabledllm.forward.meter import LossMeter
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.gradient.step_meter import StepMeter
from stabledllm.noise.blocks import BlockDraw
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.variance.blocks import step_rates
from stabledllm.variance.some_masked import SomeMasked, chance_of_some


class _UnitGradients(UnitMeter):
    """A meter of the gradients of single blocks, ``m (P_b / P) grad l_b``, m the mean number of blocks of a row.

    It is mixed with a meter of gradients. The noise of
    a row's gradient is 1 / m of that of these, as every block has a t and masks of its own.
    """

    def _times_share(self, draw: Draw, row: Tensor, method: Method) -> Draw:
        draw = super()._times_share(draw, row, method)
        if self.objective.normalization != "row":  # the draw holds the share, as each unit is a row of its own
            return draw
        weight = self.weights[row].to(draw.coefficient)
        return replace(draw, coefficient=draw.coefficient * weight[:, None, None])

    def _one_batch(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return LossMeter._one_batch(self, *args, **kwargs)  # the weight is in the draw


class UnitRowGradients(_UnitGradients, RowGradients):
    """A meter of the exact gradients of single blocks.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(UnitRowGradients, block_size=2).rows)
    7
    """


class ProjectedUnitGradients(_UnitGradients, ProjectedGradients):
    """A meter of the projected gradients of single blocks.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(ProjectedUnitGradients, block_size=2).rows)
    7
    """


class _GivenHidden(BlockMeter):
    """A meter of rows in blocks that knows masks which were drawn given that they hide a token.

    Each block's loss is multiplied by the chance q of that: its mean is that of plain masks, and ``q (1 - q) |g|²`` is
    missing of the second moment (``hidden_noise``).
    """

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> BlockDraw:
        draw = super().noise_at(t, method, key, noise, sampler)
        if not isinstance(method.masker, SomeMasked):
            return draw
        chance = chance_of_some(draw.t, draw.units.rows.maskable.sum(1), self.objective)
        scaled = draw.drawn.coefficient * chance[:, None, None]
        return draw.units.fold(replace(draw.drawn, coefficient=scaled))


class BlockRowGradients(_GivenHidden, RowGradients):
    """A meter of the exact gradients of whole rows in blocks.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(BlockRowGradients, block_size=2).rows)
    4
    """


class ProjectedBlockGradients(_GivenHidden, ProjectedGradients):
    """A meter of the projected gradients of whole rows in blocks.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(ProjectedBlockGradients, block_size=2).rows)
    4
    """


class BlockSteps(_GivenHidden, StepMeter):
    """A meter of whole training steps in blocks, whose units are numbered as in training.

    Args:
        one_t: one t for all blocks of a row. The rest is as for :class:`BlockMeter` and :class:`StepMeter`.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter = example_meter(BlockSteps, block_size=2)
    >>> meter.measure(Method(), Method().sampler(), rows=2, steps=4, seed=0).gram["raw"].shape
    torch.Size([4, 4])
    """

    def __init__(self, *args, one_t: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.one_t = one_t

    def rates(self, method: Method, sampler: TSampler, key: Key, drawn: Tensor) -> Tensor:
        """The mask ratio of each block of a step's rows, float64, shape (n, m)."""
        return step_rates(method, sampler, key, self.block_sizes[drawn], one_t=self.one_t)
