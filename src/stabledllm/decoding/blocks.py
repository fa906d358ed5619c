"""Decoding of models trained by block diffusion: a token sees the prompt and the blocks up to its own."""

from __future__ import annotations

from torch import Tensor

from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.state import State
from stabledllm.errors import UserError


class BlockState(State):
    """Rows of a model trained in blocks.

    Raises:
        UserError: other blocks than the model was trained with, or a cache of what it does not see.
    """

    def __init__(self, model, prompts, options: DecodingOptions, *rest):
        trained = model.config.block_size
        if trained != options.block:
            raise UserError(
                f"decoding: expected block {trained}, with which the model was trained, found {options.block}."
            )
        if options.cache == "dual":
            raise UserError(
                "decoding.cache: expected 'prefix' for a model trained in blocks, where nothing sees a later block, "
                "found 'dual'."
            )
        super().__init__(model, prompts, options, *rest)

    def form(self, attention: Tensor) -> dict[str, Tensor]:
        # Blocks still to come are seen by nobody before them: they need not be taken away.
        return {"block_ids": (self.place // self.options.block + 1).clamp(min=0).masked_fill(~attention, -1)}

    def first_span(self, block: int) -> tuple[int, int] | None:
        if block == 0:
            return None
        # What is kept of the block before is of its masked state; of the blocks before that nothing has changed.
        return (block - 1) * self.options.block, (block + 1) * self.options.block

    def later_span(self, block: int) -> tuple[int, int]:
        return block * self.options.block - self.shift, (block + 1) * self.options.block
