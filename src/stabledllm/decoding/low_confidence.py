"""Greedy low-confidence decoding in semi-autoregressive blocks (LLaDA, arXiv:2502.09992, section 2.4).

Legend: B rows, L positions, G generated positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError


@dataclass(frozen=True)
class DecodingOptions:
    """``length`` new tokens in blocks of ``block``, ``steps`` model calls in all. Part of every result.

    Raises:
        UserError: unless ``block`` divides ``length`` and the blocks share the steps evenly.
    """

    length: int = 128
    steps: int = 128
    block: int = 32

    def __post_init__(self) -> None:
        if min(self.length, self.steps, self.block) < 1:
            raise UserError("decoding: length, steps and block must be at least 1.")
        if self.length % self.block:
            raise UserError(f"decoding: block {self.block} does not divide length {self.length}.")
        if self.steps % (self.length // self.block):
            raise UserError(f"decoding: steps {self.steps} do not divide over {self.length // self.block} blocks.")


def per_step(block: int, steps: int) -> list[int]:
    """How many tokens each of the block's steps reveals: as even as can be, the larger ones first."""
    return [block // steps + (i < block % steps) for i in range(steps)]


@torch.no_grad()
def generate(
    model, prompts: Sequence[Sequence[int]], options: DecodingOptions, *, mask_id: int, eos_id: int, pad_id: int
) -> list[list[int]]:
    """Greedy completions, each cut before its end token; the same for any batch composition.

    Prompts of unequal length are padded on the right *behind* the generated region's place, so every
    row keeps its own positions 0, 1, 2, ...: padding moves no position. A row whose block holds an end
    token with everything before it decided is finished and leaves the batch. A model trained in blocks
    (``config.block_size``) sees the prompt and the finished blocks, as in training.

    Returns:
        One list of token ids per prompt, at most ``options.length`` long.

    Raises:
        UserError: other blocks than the model was trained with.
    """
    trained = getattr(model.config, "block_size", None)
    if trained and trained != options.block:
        raise UserError(f"decoding: expected block {trained}, with which the model was trained, found {options.block}.")
    device = next(model.parameters()).device
    starts = torch.tensor([len(p) for p in prompts], device=device)
    width = int(starts.max()) + options.length
    ids_BL = torch.full((len(prompts), width), pad_id, device=device)
    for row, prompt in enumerate(prompts):
        ids_BL[row, : len(prompt)] = torch.tensor(prompt, device=device)
        ids_BL[row, len(prompt) : len(prompt) + options.length] = mask_id
    place_BL = torch.arange(width, device=device)[None] - starts[:, None]
    attention_BL = place_BL < options.length
    # Blocks still to come are seen by nobody before them, so that they need not be taken away.
    form = (
        {"block_ids": ((place_BL // options.block + 1).clamp(min=0)).masked_fill(~attention_BL, -1)} if trained else {}
    )
    live = torch.arange(len(prompts), device=device)
    for first in range(0, options.length, options.block):
        for reveal in per_step(options.block, options.steps // (options.length // options.block)):
            if reveal and len(live):
                block = (place_BL[live] >= first) & (place_BL[live] < first + options.block)
                own = {name: value[live] for name, value in form.items()}
                ids_BL[live] = _reveal(model, ids_BL[live], attention_BL[live], block, reveal, mask_id, own)
        seen = (place_BL[live] >= 0) & (place_BL[live] < first + options.block)
        live = live[~((ids_BL[live] == eos_id) & seen).any(1)]
    return [_cut(ids_BL[i, n : n + options.length].tolist(), eos_id) for i, n in enumerate(starts.tolist())]


def _reveal(model, ids: Tensor, attention: Tensor, block: Tensor, count: int, mask_id: int, form: dict) -> Tensor:
    """Decide the ``count`` masked positions of the block in which the model is surest."""
    masked = (ids == mask_id) & block
    if not bool(masked.any()):
        return ids
    logits = model(ids, attention, selected=masked, **form).logits
    logits[:, mask_id] = -torch.inf
    confidence, token = logits.softmax(-1).max(-1)
    sure = torch.full(ids.shape, -1.0, dtype=confidence.dtype, device=ids.device)
    sure[masked] = confidence
    best = torch.zeros_like(masked).scatter(1, sure.topk(min(count, ids.shape[1]), dim=1).indices, True) & masked
    return ids.clone().masked_scatter(best, token[best[masked]])


def _cut(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
