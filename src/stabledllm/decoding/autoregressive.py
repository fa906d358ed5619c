"""Decoding of autoregressive models: token by token from left to right, with the model's own key/value cache.

Legend: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import DynamicCache

from stabledllm.decoding.choice import choose
from stabledllm.decoding.options import DecodingOptions
from stabledllm.errors import UserError
from stabledllm.noise.streams import Key, Stream

_DIFFUSION_ONLY = (
    "order", "schedule", "guidance", "threshold", "entropy_bound", "sub_block", "first_token", "cache",
    "logits_eos_inf", "confidence_eos_eot_inf",
)  # fmt: skip


def left_to_right(options: DecodingOptions) -> DecodingOptions:
    """The options as they act on an autoregressive model, which decodes one token per model call.

    Length, temperature, top_p and seed are kept; ``steps`` and ``block`` become ``length``, so that a record of the
    result says what was done.

    Raises:
        UserError: an option that only masked diffusion models have.
    """
    plain = DecodingOptions()
    for name in _DIFFUSION_ONLY:
        if getattr(options, name) != getattr(plain, name):
            raise UserError(
                f"decoding.{name}: expected a masked diffusion model, found an autoregressive one, which decodes from "
                f"left to right."
            )
    return replace(options, steps=options.length, block=options.length)


@torch.no_grad()
def continue_prompts(
    model,
    prompts: Sequence[Sequence[int]],
    options: DecodingOptions,
    *,
    eos_id: int,
    pad_id: int,
    first: int,
    stats,
) -> list[list[int]]:
    """Completions up to their end token, at most ``options.length`` long; a row that has ended leaves the batch.

    Prompts are padded on the left and keep positions 0, 1, 2, ...; the draws of a row depend on its place among the
    prompts alone, so that batches change a completion at most by rounding.
    """
    options = left_to_right(options)
    device = next(model.parameters()).device
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        mask[row, width - len(prompt) :] = 1
    position = (mask.cumsum(1) - 1).clamp(min=0)
    live, cache = torch.arange(len(prompts), device=device), DynamicCache(config=model.config)
    out: list[list[int]] = [[] for _ in prompts]
    for step in range(options.length):
        logits = (
            model(ids, mask, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[:, -1]
            .float()
        )
        stats.model_calls += 1
        stats.forward_rows += len(live)
        stats.logit_positions += len(live)
        drawn = torch.empty(0, device=device)
        if options.temperature > 0:
            place = torch.full((1,), step, device=device)
            drawn = Key(options.seed, 0).token_uniforms(Stream.DECODING, first + live, place)[:, 0]
        token, _ = choose(logits, options, drawn)
        going = token != eos_id
        for row, chosen in zip(live[going].tolist(), token[going].tolist(), strict=True):
            out[row].append(chosen)
        if not bool(going.any()):
            break
        if not bool(going.all()):
            cache.batch_select_indices(going.nonzero()[:, 0])
            live, token, mask, position = live[going], token[going], mask[going], position[going]
        ids, position = token[:, None], position[:, -1:] + 1
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return out
