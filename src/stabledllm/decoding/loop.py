"""Decoding of masked diffusion models in semi-autoregressive blocks.

Sources: LLaDA (arXiv:2502.09992), Dream (arXiv:2508.15487).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stabledllm.decoding.autoregressive import continue_prompts
from stabledllm.decoding.blocks import BlockState
from stabledllm.decoding.model_fit import refuse_unsuited
from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.state import State
from stabledllm.errors import UserError
from stabledllm.models.kind import is_autoregressive


@dataclass
class DecodingStats:
    """Counts and time of decoding, added up over calls of :func:`generate`."""

    model_calls: int = 0
    forward_rows: int = 0
    """Rows that went through the model, including those of guidance."""
    forward_positions: int = 0
    """Positions of these rows that went through it, including padding; without a cache all of them."""
    logit_positions: int = 0
    """Positions at which logits were computed."""
    tokens: int = 0
    """Tokens of the completions, without end tokens and what would follow them."""
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens for each time that a row went through the model."""
        return self.tokens / self.forward_rows if self.forward_rows else 0.0

    def as_dict(self) -> dict:
        """The statistics as JSON values."""
        rates = {"tokens_per_second": self.tokens_per_second, "tokens_per_forward": self.tokens_per_forward}
        return {**self.__dict__, **rates}

    def __str__(self) -> str:
        return (
            f"{self.model_calls} model calls, {self.tokens} tokens, {self.tokens_per_forward:.3g} tokens per forward, "
            f"{self.tokens_per_second:.3g} tokens/s"
        )


@torch.no_grad()
def generate(
    model,
    prompts: Sequence[Sequence[int]],
    options: DecodingOptions,
    *,
    mask_id: int | None,
    eos_id: int,
    pad_id: int,
    first: int = 0,
    stats: DecodingStats | None = None,
    ends: Sequence[int] | None = None,
) -> list[list[int]]:
    """Completions, each cut before its end token; the same for any batch composition.

    Prompts of unequal length are padded on the right, *behind* the generated tokens, so every
    row keeps its own positions 0, 1, 2, ...: padding moves no position. A row in which an end token has been
    decided with everything before it is finished and leaves the batch: what would follow is cut off anyway.
    Logits are computed only at the masked positions of the current block. A model trained in blocks
    (``config.block_size``) attends to the prompt and the blocks up to the current one, as in training; where its blocks
    are counted from the row's start, the last one is decoded whole, as published, and the completion cut. An
    autoregressive model decodes from left to right, see :mod:`~stabledllm.decoding.autoregressive`.
    With ``options.cache`` only the positions that it names go through the model after a block's first call.

    Args:
        first: place of the first prompt among all that are decoded, for the random draws.
        stats: the counts and the time of this call are added here.
        ends: the tokens that end a sequence, then a turn, for the options that name them; without it ``eos_id``.

    Returns:
        One list of token ids per prompt, at most ``options.length`` long.

    Raises:
        UserError: options that do not fit the model, see :mod:`~stabledllm.decoding.model_fit`, or a prompt that holds
            the mask token.
    """
    began = time.perf_counter()
    stats = stats if stats is not None else DecodingStats()
    if is_autoregressive(model):
        out = continue_prompts(model, prompts, options, eos_id=eos_id, pad_id=pad_id, first=first, stats=stats)
        return _counted(out, stats, began)
    refuse_unsuited(model, options)
    _refuse_masked(prompts, mask_id, first)
    kind = BlockState if getattr(model.config, "block_size", None) else State
    state = kind(model, prompts, options, mask_id, pad_id, first, stats, (eos_id,) if ends is None else ends)
    state.run(eos_id)
    out = [_cut(state.done[i, n : n + options.length].tolist(), eos_id) for i, n in enumerate(len(p) for p in prompts)]
    return _counted(out, stats, began)


def _refuse_masked(prompts: Sequence[Sequence[int]], mask_id: int | None, first: int) -> None:
    """Refuse a prompt with a mask token, which would look like a position to fill."""
    for place, prompt in enumerate(prompts, first + 1):
        if mask_id in prompt:
            raise UserError(f"prompt {place}: expected no mask token, found its id {mask_id}.")


def _counted(out: list[list[int]], stats: DecodingStats, began: float) -> list[list[int]]:
    stats.tokens += sum(len(ids) for ids in out)
    stats.seconds += time.perf_counter() - began
    return out


def _cut(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
