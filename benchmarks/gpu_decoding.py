"""Decoding in ``gpu.py``: ours, with and without caches, against the published loop in the same process."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import torch
from gpu_device import Device
from gpu_items import Scale

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.models.families.llada import LLaDAModelLM


def decoding(device: Device, scale: Scale, model: LLaDAModelLM) -> dict:
    """Tokens per second of our decoding, by its caches, and of the published loop under the same settings."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(0, scale.mask_id, (scale.prompts, scale.prompt), generator=generator).tolist()
    end = scale.mask_id - 1
    model.eval()
    head, special = model.get_output_embeddings().weight, {"mask_id": scale.mask_id, "eos_id": end, "pad_id": end}
    with torch.no_grad():
        kept = head[end].clone()
        head[end] = 0  # a logit of 0 is never the largest: no row ends early
    tokens = scale.prompts * scale.decoding.length
    device.synchronize()
    began = time.perf_counter()
    plain = published(model, prompts, scale.decoding, scale.mask_id, device.kind)
    device.synchronize()
    found = {"options": asdict(scale.decoding), "prompts": scale.prompts, "prompt_tokens": scale.prompt}
    found["published loop"] = {"tokens_per_second": tokens / (time.perf_counter() - began)}
    for cache in ("none", "prefix", "dual"):
        stats = DecodingStats()
        ours = generate(model, prompts, replace(scale.decoding, cache=cache), **special, stats=stats)
        same = sum(a == b for one, other in zip(ours, plain, strict=True) for a, b in zip(one, other, strict=False))
        found[f"cache {cache}"] = stats.as_dict() | {"same_tokens": same / tokens}
    with torch.no_grad():
        head[end] = kept
    device.free()
    return found


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
