"""Qwen2 and Qwen3 in blocks by their definition, in float64: block after block on its clean past, without any mask.

Legend: L positions, S tokens of a block, D width, E width of a head, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.models.families.published import norm, per_head

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of all tokens before a block, for each layer."""


def sdar_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row under an SDAR checkpoint; blocks of 4 where config.json does not say it."""
    hidden, _ = in_blocks(weights, keys, keys.get("block_size", 4), ids_L, ids_L)
    return hidden @ _head(weights)


def fast_dllm_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row under a Fast-dLLM v2 checkpoint, shifted right by one."""
    hidden, _ = in_blocks(weights, keys, keys["bd_size"], ids_L, ids_L)
    logits = hidden @ _head(weights)
    return torch.cat((logits[:1], logits[:-1]))


def training_logits(weights: dict, keys: dict, size: int, noisy_L: Tensor, clean_L: Tensor, start: str) -> Tensor:
    """Logits (L, V) at the positions of a noisy row whose blocks see their clean past.

    Args:
        start: ``none`` without shift; else the copy whose last position predicts a block's first token.
    """
    noisy, clean = in_blocks(weights, keys, size, noisy_L, clean_L)
    if start == "none":
        return noisy @ _head(weights)
    rows = [noisy[0]]
    for i in range(1, len(noisy)):
        rows.append(clean[i - 1] if i % size == 0 and start == "clean" else noisy[i - 1])
    return torch.stack(rows) @ _head(weights)


def in_blocks(weights: dict, keys: dict, size: int, noisy_L: Tensor, clean_L: Tensor) -> tuple[Tensor, Tensor]:
    """Final hidden states (L, D) of the noisy row and of the clean one, whose blocks are counted from the start."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    past: Past = [(torch.zeros(0), torch.zeros(0))] * keys["num_hidden_layers"]
    noisy, clean = [], []
    for start in range(0, len(clean_L), size):
        noisy.append(_block(w, keys, noisy_L[start : start + size], start, past)[0])
        hidden, past = _block(w, keys, clean_L[start : start + size], start, past)
        clean.append(hidden)
    return torch.cat(noisy), torch.cat(clean)


def _block(w: dict, keys: dict, ids_S: Tensor, start: int, past: Past) -> tuple[Tensor, Past]:
    """Hidden states (S, D) of one block that sees its past and itself, and the past with it added."""
    eps, heads, shared_by = keys["rms_norm_eps"], keys["num_attention_heads"], keys["num_key_value_heads"]
    size = keys.get("head_dim") or keys["hidden_size"] // heads
    x, longer = w["embed_tokens.weight"][ids_S], []
    for i, (keys_before, values_before) in enumerate(past):
        layer = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if f"layers.{i}." in name}
        normed = norm(x, layer["input_layernorm.weight"], eps)
        q, k, v = (
            normed @ layer[f"self_attn.{name}.weight"].T + layer.get(f"self_attn.{name}.bias", torch.zeros(1))
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if "self_attn.q_norm.weight" in layer:
            q = per_head(q, layer["self_attn.q_norm.weight"], eps)
            k = per_head(k, layer["self_attn.k_norm.weight"], eps)
        q, k = (_turned(values, size, start, keys["rope_theta"]) for values in (q, k))
        if len(keys_before):
            k, v = torch.cat((keys_before, k)), torch.cat((values_before, v))
        longer.append((k, v))
        mixed = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            group = head // (heads // shared_by)
            theirs = slice(group * size, (group + 1) * size)
            mixed.append((q[:, own] @ k[:, theirs].T / math.sqrt(size)).softmax(-1) @ v[:, theirs])
        x = x + torch.cat(mixed, dim=1) @ layer["self_attn.o_proj.weight"].T
        normed = norm(x, layer["post_attention_layernorm.weight"], eps)
        gate = normed @ layer["mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (normed @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"], eps), longer


def _turned(x_SD: Tensor, size: int, start: int, theta: float) -> Tensor:
    """Each head's pairs (i, i + E / 2) turned by the angle ``position * theta^(-2 i / E)``, from position ``start``."""
    place = torch.arange(start, start + len(x_SD), dtype=torch.float64)
    out = x_SD.clone()
    for head in range(0, x_SD.shape[1], size):
        for i in range(size // 2):
            angle = place * theta ** (-2 * i / size)
            first, second = x_SD[:, head + i], x_SD[:, head + i + size // 2]
            out[:, head + i] = first * angle.cos() - second * angle.sin()
            out[:, head + i + size // 2] = second * angle.cos() + first * angle.sin()
    return out


def _head(weights: dict[str, Tensor]) -> Tensor:
    return weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).double().T
