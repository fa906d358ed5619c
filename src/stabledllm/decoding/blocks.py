"""Decoding of models trained by block diffusion: a token attends to the prompt and to the blocks up to its own."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.state import State
from stabledllm.errors import UserError
from stabledllm.noise.blocks import Blocks


class BlockState(State):
    """The rows that a model trained in blocks is decoding.

    Raises:
        UserError: blocks of a size that the model was not trained with, or a cache of later blocks.
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
        self._blocks = Blocks.of(model, options.block)
        super().__init__(model, prompts, options, *rest)
        self._shared = bool(torch.as_tensor(self.lead).any())

    @property
    def blocks(self) -> int:
        # Where prompts end within a block, so do completions.
        return self.options.blocks + self._shared

    @property
    def lead(self) -> Tensor | int:
        return -self.place[:, :1] % self._blocks.size if self._blocks.from_start else 0

    def form(self, attention: Tensor) -> dict[str, Tensor]:
        # No earlier token attends to later blocks, so these need not be taken away.
        return {"block_ids": self._blocks.ids(self.place >= 0, attention)}

    def first_span(self, block: int) -> tuple[int, int] | None:
        if block == 0:
            return None
        # The cache of the previous block is of its masked state; the blocks before that have not changed.
        return (block - 1) * self.options.block, (block + 1) * self.options.block

    def later_span(self, block: int) -> tuple[int, int]:
        return block * self.options.block - self.shift, (block + 1) * self.options.block
