"""The measurements of one decomposition of a model in blocks: a block is a row to the methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stabledllm.data.rows import TokenRow, maskable_sizes
from stabledllm.forward.blocks import BlockMeter
from stabledllm.forward.meter import MeteredModel
from stabledllm.lab.measure.block_gradient import BlockGradientLaboratory
from stabledllm.lab.measure.laboratory import Laboratory
from stabledllm.lab.measure.options import DecomposeOptions
from stabledllm.lab.measure.probe_and_fit import probe_and_fit
from stabledllm.lab.measure.progress import Progress
from stabledllm.noise.blocks import Blocks, mean_forwards_in_blocks
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.record import FittedDensity
from stabledllm.variance.blocks import NestedBlocks, RateSplit, measure_blocks, nested_blocks
from stabledllm.variance.comparison import MethodResult
from stabledllm.variance.components import NestedLosses
from stabledllm.variance.drawn import step_rows
from stabledllm.variance.low_rates import LowRates


class BlockLaboratory(Laboratory):
    """The measurements of one model in blocks and data set.

    The curves over t are those of whole rows whose blocks share one t; A, B, C and the methods are those of blocks with
    a t of their own. Variances are measured on drawn steps and not predicted.

    Args:
        block_size: response tokens of a block. The rest is as for :class:`Laboratory`.
    """

    def __init__(
        self,
        options: DecomposeOptions,
        loaded: MeteredModel,
        rows: Sequence[TokenRow],
        objective: Objective,
        progress: Progress,
        block_size: int,
    ):
        self.block_size = block_size
        super().__init__(options, loaded, rows, objective, progress)

    def _meter(self, objective: Objective) -> BlockMeter:
        given = {"block_size": self.block_size, "as_trained": True, "progress": self._update}
        return BlockMeter(self.loaded, self.rows, objective, **given, **self.sized)

    def gradients(self, standard: Method) -> BlockGradientLaboratory:
        given = (self.options, self.loaded, self.rows, standard, self.progress.update, self.block_size, self.sized)
        return BlockGradientLaboratory(*given)

    def nested(self, standard: Method) -> NestedBlocks:
        nested = nested_blocks(self.meter, standard, **self.design)
        units, sizes = nested.by_unit(), self.meter.block_sizes[nested.rows]
        self.low = LowRates.of(units, sizes[sizes > 0], self.meter.objective)
        self._units_per_row = len(units.losses) / len(nested.losses)
        return nested

    def further(self, nested: NestedLosses) -> dict:
        return {"blocks": RateSplit.of(nested).as_dict() | {"block_size": self.block_size}}

    def cost(self, method: Method, sampler: TSampler) -> float:
        sizes = maskable_sizes(self.rows, method)
        from_start = Blocks.of(self.loaded.model, self.block_size).from_start
        lead = torch.tensor([row.prompt_length % self.block_size if from_start else 0 for row in self.rows])
        return mean_forwards_in_blocks(method.views, sampler, sizes, self.block_size, lead)

    def density(self, method: Method) -> FittedDensity:
        rows = step_rows(method, self.options.forwards, self.cost(method, Uniform()))
        given = (self.loaded, self.rows, method, self.options.probe, self.options.seed, rows)
        return probe_and_fit(*given, progress=self.progress, block_size=self.block_size)

    def result(self, method: Method, density: FittedDensity | None) -> MethodResult:
        options, sampler = self.options, method.sampler(density.sampler if density else None)
        cost = self.cost(method, sampler)
        self.drawn[method.name] = sampler, cost
        rows = step_rows(method, options.forwards, cost)
        measured = measure_blocks(
            self.meter, method, sampler, rows=rows, steps=options.steps, seed=options.seed, rare=self._rare
        )
        return MethodResult(method.name, method.unbiased, measured, None, cost)

    def _rare(self, method: Method, sampler: TSampler) -> float:
        return self.low.noise(method, sampler).value * self._units_per_row if self.low else 0.0
