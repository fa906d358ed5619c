"""LLaDA2 by its definition, in float64: block after block on its clean past, token by token through its experts.

Legend: L positions, S tokens of a block, D width, E width of a head, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.models.families.published import norm, per_head

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of all tokens before a block, for each layer."""


def llada2_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row; blocks of 32 where config.json does not say it."""
    return llada2_training_logits(weights, keys, ids_L, ids_L)


def llada2_training_logits(weights: dict[str, Tensor], keys: dict, noisy_L: Tensor, clean_L: Tensor) -> Tensor:
    """Logits (L, V) at the positions of a noisy row whose blocks, counted from the start, see their clean past."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    size, nothing = keys.get("block_size", 32), torch.zeros(0, keys["num_key_value_heads"] * keys["head_dim"])
    past, hidden = [(nothing.double(), nothing.double())] * keys["num_hidden_layers"], []
    for start in range(0, len(clean_L), size):
        hidden.append(_block(w, keys, noisy_L[start : start + size], start, past)[0])
        _, past = _block(w, keys, clean_L[start : start + size], start, past)
    return torch.cat(hidden) @ w["lm_head.weight"].T


def _block(w: dict, keys: dict, ids_S: Tensor, start: int, past: Past) -> tuple[Tensor, Past]:
    eps, x, longer = keys["rms_norm_eps"], w["word_embeddings.weight"][ids_S], []
    for i, (keys_before, values_before) in enumerate(past):
        at = f"layers.{i}"
        normed = norm(x, w[f"{at}.input_layernorm.weight"], eps)
        mixed, k, v = _attention(w, keys, f"{at}.attention", normed, start, keys_before, values_before)
        longer.append((k, v))
        x = x + mixed
        normed = norm(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        if i < keys["first_k_dense_replace"]:
            x = x + _mlp(w, f"{at}.mlp", normed)
            continue
        added = torch.stack([_routed(w, keys, f"{at}.mlp", token) for token in normed])
        x = x + added + (_mlp(w, f"{at}.mlp.shared_experts", normed) if keys["num_shared_experts"] else 0.0)
    return norm(x, w["norm.weight"], eps), longer


def _attention(w: dict, keys: dict, at: str, x: Tensor, start: int, keys_before: Tensor, values_before: Tensor):
    heads, shared, size = keys["num_attention_heads"], keys["num_key_value_heads"], keys["head_dim"]
    both = x @ w[f"{at}.query_key_value.weight"].T
    q, k, v = both[:, : heads * size], both[:, heads * size : (heads + shared) * size], both[:, -shared * size :]
    q = per_head(q, w[f"{at}.query_layernorm.weight"], keys["rms_norm_eps"])
    k = per_head(k, w[f"{at}.key_layernorm.weight"], keys["rms_norm_eps"])
    q, k = (_turned(values, keys, start) for values in (q, k))
    k, v = torch.cat((keys_before, k)), torch.cat((values_before, v))
    mixed = []
    for head in range(heads):
        own, group = slice(head * size, (head + 1) * size), head // (heads // shared)
        theirs = slice(group * size, (group + 1) * size)
        mixed.append((q[:, own] @ k[:, theirs].T / math.sqrt(size)).softmax(-1) @ v[:, theirs])
    return torch.cat(mixed, dim=1) @ w[f"{at}.dense.weight"].T, k, v


def _turned(x_SD: Tensor, keys: dict, start: int) -> Tensor:
    """The first part of each head, its pairs (i, i + half of the part) turned by ``position * theta^(-2 i / part)``."""
    size, place = keys["head_dim"], torch.arange(start, start + len(x_SD), dtype=torch.float64)
    part, out = int(size * keys["partial_rotary_factor"]), x_SD.clone()
    for head in range(0, x_SD.shape[1], size):
        for i in range(part // 2):
            angle = place * keys["rope_theta"] ** (-2 * i / part)
            first, second = x_SD[:, head + i], x_SD[:, head + i + part // 2]
            out[:, head + i] = first * angle.cos() - second * angle.sin()
            out[:, head + i + part // 2] = second * angle.cos() + first * angle.sin()
    return out


def _routed(w: dict, keys: dict, at: str, x_D: Tensor) -> Tensor:
    score = [float(1 / (1 + torch.exp(-(row @ x_D)))) for row in w[f"{at}.gate.weight"]]
    bias = w.get(f"{at}.gate.expert_bias", torch.zeros(len(score)).double()).tolist()
    biased, each = [s + b for s, b in zip(score, bias, strict=True)], len(score) // keys["n_group"]
    groups = [range(g * each, (g + 1) * each) for g in range(keys["n_group"])]
    best = sorted(groups, key=lambda group: -sum(sorted(biased[e] for e in group)[-2:]))[: keys["topk_group"]]
    allowed = [e for group in best for e in group]
    chosen = sorted(allowed, key=lambda e: -biased[e])[: keys["num_experts_per_tok"]]
    total = sum(score[e] for e in chosen) if keys["norm_topk_prob"] and len(chosen) > 1 else 1.0
    shares = {e: score[e] / total * keys["routed_scaling_factor"] for e in chosen}
    return sum(share * _mlp(w, f"{at}.experts.{e}", x_D[None])[0] for e, share in shares.items())


def _mlp(w: dict, name: str, x: Tensor) -> Tensor:
    gate = x @ w[f"{name}.gate_proj.weight"].T
    return (gate * gate.sigmoid() * (x @ w[f"{name}.up_proj.weight"].T)) @ w[f"{name}.down_proj.weight"].T
