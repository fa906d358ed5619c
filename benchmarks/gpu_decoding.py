"""Decoding in ``gpu.py``: ours, with and without caches, against the published loop in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from gpu_device import Device
from gpu_items import Results, Scale
from torch import Tensor

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.models.families.llada import LLaDAModelLM


def decoding(device: Device, scale: Scale, model: LLaDAModelLM) -> Results:
    """Tokens per second of our decoding, by its caches, and of the published loop under the same settings."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(0, scale.mask_id, (scale.prompts, scale.prompt), generator=generator).tolist()
    end = scale.mask_id - 1
    model.eval()
    head, special = model.get_output_embeddings().weight, {"mask_id": scale.mask_id, "eos_id": end, "pad_id": end}
    yield from {"options": asdict(scale.decoding), "prompts": scale.prompts, "prompt_tokens": scale.prompt}.items()
    with never_chosen(head, end):
        tokens = scale.prompts * scale.decoding.length
        one = replace(scale.decoding, length=scale.decoding.block, steps=1)
        published(model, prompts, one, scale.mask_id, device.kind)  # else the first loop alone pays for a cold start
        device.synchronize()
        began = time.perf_counter()
        plain = published(model, prompts, scale.decoding, scale.mask_id, device.kind)
        device.synchronize()
        yield "published loop", {"tokens_per_second": tokens / (time.perf_counter() - began)}
        for cache in ("none", "prefix", "dual"):
            stats = DecodingStats()
            ours = generate(model, prompts, replace(scale.decoding, cache=cache), **special, stats=stats)
            same = sum(a == b for one, other in zip(ours, plain, strict=True) for a, b in zip(one, other, strict=False))
            yield f"cache {cache}", stats.as_dict() | {"same_tokens": same / tokens}
    device.free()


@contextmanager
def never_chosen(head: Tensor, token: int) -> Iterator[None]:
    """A context in which a token's logit is 0, never the largest: so no row ends early."""
    kept = head[token].detach().clone()
    head.data[token] = 0
    try:
        yield
    finally:
        head.data[token] = kept


@torch.no_grad()
def published(model, prompts: list[list[int]], options: DecodingOptions, mask_id: int, device) -> list[list[int]]:
    """LLaDA's decoding as its paper describes it, for prompts of one length: all logits in every step, no cache."""
    start = len(prompts[0])
    ids = torch.full((len(prompts), start + options.length), mask_id, device=device)
    ids[:, :start] = torch.tensor(prompts, device=device)
    steps = options.steps // options.blocks
    for step in range(options.steps):
        low = start + step // steps * options.block
        logits = model(ids).logits
        logits[..., mask_id] = -torch.inf
        token = logits.argmax(-1)
        sure = logits.float().softmax(-1).gather(-1, token[..., None])[..., 0]
        sure = sure.masked_fill(ids != mask_id, -torch.inf)
        sure[:, :low], sure[:, low + options.block :] = -torch.inf, -torch.inf
        best = sure.topk(options.block // steps, dim=1).indices
        ids.scatter_(1, best, token.gather(1, best))
    return ids[:, start:].tolist()
