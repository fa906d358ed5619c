"""Decoding of models trained by block diffusion: a token attends to the prompt and to the blocks up to its own.

Sources: SDAR (arXiv:2510.06303), Fast-dLLM v2 (arXiv:2509.26328).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.decoding.choice import choose
from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.state import State
from stabledllm.noise.blocks import Blocks


class BlockState(State):
    """The rows that a model trained in blocks is decoding.

    Only the prompt and the blocks up to the current one go through the model. With a cache each block does so once when
    it is finished, which gives its final keys and values: together with the next block's first call, or alone where
    that block's first token is decided before its others.
    """

    def __init__(self, model, prompts, options: DecodingOptions, *rest):
        self._blocks = Blocks.of(model, options.block)
        super().__init__(model, prompts, options, *rest)
        self._ahead = bool(self.shift) and options.first_token != "in_turn"
        self._shared = bool(torch.as_tensor(self.lead).any())

    @property
    def blocks(self) -> int:
        # Where prompts end within a block, so do completions.
        return self.options.blocks + self._shared

    @property
    def extent(self) -> Tensor | int:
        # The published loops decode the last block whole and cut the completion.
        length = self.options.length
        return length + (self.place[:, :1] - length) % self._blocks.size if self._blocks.from_start else length

    @property
    def lead(self) -> Tensor | int:
        return -self.place[:, :1] % self._blocks.size if self._blocks.from_start else 0

    def reach(self, block: int) -> int:
        ends = (block + 1) * self.options.block - self.lead - self.place[:, :1]
        return min(int(ends.max()), self.ids.shape[1])

    def form(self, place: Tensor, attention: Tensor) -> dict[str, Tensor]:
        # No earlier token attends to later blocks, so these need not be taken away.
        return {"block_ids": self._blocks.ids(place >= 0, attention)}

    def begin(self, block: int) -> bool:
        """Decide the block's first token from the clean block before it, in rows where it is not given."""
        if not self._ahead:
            return False
        start = self.place + self.lead == block * self.options.block
        start[:, 0] = False  # nothing is before it
        start &= self.ids == self.mask_id
        if not bool(start.any()):
            return False
        logits = self._logits(start, block, self._clean(block))
        greedy = replace(self.options, temperature=0.0, top_p=1.0)
        self.reveal(start, choose(logits, greedy, torch.empty(0, device=logits.device))[0], logits)
        return True

    def _clean(self, block: int) -> Tensor | None:
        """The positions of what is before a block and not stored yet, (B, Q): the block before it, or the prompt's."""
        if self.cache is None:
            return None
        self.cached_block = block
        if block:
            return self._columns(block, ((block - 1) * self.options.block, block * self.options.block))
        # What lies behind a shorter prompt is hidden from it, and computed again when its turn comes.
        width = int((-self.place[:, :1] - self.lead).max())
        return torch.arange(width, device=self.ids.device).expand(len(self.ids), width)

    def first_span(self, block: int) -> tuple[int, int] | None:
        if block == 0:
            return None
        # The cache of the previous block is of its masked state; the blocks before that have not changed.
        return (block - 1) * self.options.block, (block + 1) * self.options.block

    def later_span(self, block: int) -> tuple[int, int]:
        return block * self.options.block - self.shift, (block + 1) * self.options.block
