"""The gradient's part of ``stabledllm decompose`` for a model in blocks: A, B, C, the split of B, and drawn steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.block_components import UnitNoise, decompose_in_blocks, scale_of, split_of_gradient, unit_noise
from stabledllm.gradient.block_noise import StepNoiseInBlocks, few_draws_decide
from stabledllm.gradient.blocks import (
    BlockRowGradients,
    BlockSteps,
    ProjectedBlockGradients,
    ProjectedUnitGradients,
    UnitRowGradients,
)
from stabledllm.gradient.components import GradientDecomposition
from stabledllm.gradient.nested_rows import NestedRows, nested_rows
from stabledllm.gradient.steps import StepGradients, ratio
from stabledllm.lab.measure.gradient import gradient_meter
from stabledllm.lab.measure.gradient_notes import notes_in_blocks
from stabledllm.lab.measure.options import DecomposeOptions
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.stats.intervals import Ratio
from stabledllm.variance.blocks import given_hidden
from stabledllm.variance.drawn import step_rows
from stabledllm.variance.some_masked import SomeMasked


class BlockGradientLaboratory:
    """The gradient's measurements of one model in blocks and data set.

    A and B are measured on single blocks, count by count; C, and B under one t for all blocks of a row, on whole rows.
    Variances of methods are measured on drawn steps and not predicted.

    Args:
        block_size: response tokens of a block. The rest is as for
            :class:`~stabledllm.lab.measure.gradient.GradientLaboratory`.
    """

    unknown: tuple[str, ...] = ()

    def __init__(
        self,
        options: DecomposeOptions,
        loaded: MeteredModel,
        rows: Sequence[TokenRow],
        standard: Method,
        progress: Callable[[int], None],
        block_size: int,
        sized: Mapping[str, int] | None = None,
    ):
        self.options, self.grad, objective = options, options.grad, standard.objective
        self.standard = standard
        self.counts = Method.parse("fixedcount", standard.options, objective)
        common = {"progress": progress, "parameters": self.grad.parameters, "block_size": block_size, **(sized or {})}
        given, whole = (self.grad.projection, loaded, rows, objective), common | {"as_trained": True}
        self.units = gradient_meter(*given, common, (UnitRowGradients, ProjectedUnitGradients))
        self.meter = gradient_meter(*given, whole, (BlockRowGradients, ProjectedBlockGradients))
        self.steps = BlockSteps(loaded, rows, objective, clip=self.grad.clip, **whole)
        self._standard: tuple[StepGradients, StepNoiseInBlocks] | None = None

    @cached_property
    def single(self) -> UnitNoise:
        """The noise of single blocks."""
        sizes = {"rows": self.grad.rows, "rates": self.grad.rates, "masks": self.grad.masks}
        return unit_noise(self.units, self.counts, **sizes, seed=self.options.seed)

    @cached_property
    def nested(self) -> NestedRows:
        """Whole rows, one t for all blocks of each."""
        sizes = {"rows": self.options.rows, "rates": self.grad.rates, "seed": self.options.seed}
        return nested_rows(self.meter, self.standard, **sizes, one_t=True)

    @cached_property
    def _parts(self) -> GradientDecomposition:
        return decompose_in_blocks(self.single, self.nested)

    def decomposition(self) -> GradientDecomposition:
        """A, B and C of Standard's gradient, every block with a t of its own."""
        return self._parts

    def floor(self) -> None:
        """None: the least noise is not known in blocks."""

    def split(self) -> None:
        """None: A is not split in blocks."""

    def notes(self, parts: GradientDecomposition, floor: None, entries: Sequence[dict]) -> Iterator[str]:
        """Yields what the record says of the gradient's figures, those of the methods in ``entries``."""
        return notes_in_blocks(parts, entries)

    def further(self, measured: dict) -> dict:
        """The entry ``blocks`` of the record with the split of B of the gradient."""
        split = split_of_gradient(self.single, self.nested)
        return {"blocks": measured["blocks"] | {"gradient": split.as_dict("gradient noise")}}

    def result(self, method: Method, sampler: TSampler, cost: float) -> dict:
        """The entry ``gradient`` of one method in ``decomposition.json``; that of Standard must be measured first."""
        drawn = self.drawn(method, sampler, cost)
        noise = self.noise(method, sampler, cost, drawn)
        if self._standard is None:
            self._standard = drawn, noise
        of_standard, standard = self._standard
        is_standard, data = method.name == "standard", self._parts.data
        names = ("predicted_variance", "drawn_steps_agree")
        return dict.fromkeys(names) | {
            "measured_variance": noise.per_row_variance.as_dict(),
            "variance_at_equal_compute": noise.at_equal_compute(data).as_dict(),
            "relative_to_standard": (Ratio(1.0, 1.0, 1.0) if is_standard else noise.over(standard, data)).as_dict(),
            "noise_scale": scale_of(noise.per_row_variance, self._parts.mean_square).as_dict(),
            "measured_relative_to_standard": ratio(drawn, of_standard, "raw").as_dict(),
            **{
                kind: {
                    "relative_to_standard": ratio(drawn, of_standard, kind).as_dict(),
                    "noise_to_signal": drawn.noise_to_signal(kind).as_dict(),
                }
                for kind in ("clipped", "update")
            },
            "clipped_share": drawn.clipped_share,
            "pareto_k": noise.steps.pareto_k(),
            "heavy_tail": noise.heavy_tail,
        }

    def drawn(self, method: Method, sampler: TSampler, cost: float) -> StepGradients:
        """Steps as training draws them."""
        return self.steps.measure(method, sampler, **self._sizes(method, cost))

    def noise(
        self, method: Method, sampler: TSampler, cost: float, drawn: StepGradients | None = None
    ) -> StepNoiseInBlocks:
        """The noise of the raw gradient: of independent masks of single views, of steps whose blocks all hide a token.

        Args:
            drawn: steps as training draws them, where there are some already.
        """
        if given_hidden(method):
            given = replace(method, masker=SomeMasked())
            raw = self.steps.measure(given, sampler, **self._sizes(method, cost), transforms=("raw",))
            return StepNoiseInBlocks(raw, cost, self.single.hidden(sampler))
        drawn = drawn or self.drawn(method, sampler, cost)
        none = torch.zeros(1, len(self.single.weights), dtype=torch.float64)
        draws = drawn.rows * self.grad.steps * self.single.per_row * method.views.count
        variance = drawn.per_row_variance().value
        heavy = method.masker.independent and few_draws_decide(self.single, method, sampler, draws, variance)
        return StepNoiseInBlocks(drawn, cost, none, heavy)

    def _sizes(self, method: Method, cost: float) -> dict[str, int]:
        rows = step_rows(method, self.options.forwards, cost)
        return {"rows": rows, "steps": self.grad.steps, "seed": self.options.seed}
