"""The published architectures, written out plainly in float64: no masks, no batching tricks, none of our modules.

Legend: L positions, D width, H heads, E width of a head, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def llada_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor, hidden: int = 0) -> Tensor:
    """Logits (L, V) of one row under a LLaDA or MMaDA checkpoint; nobody attends to the first ``hidden`` tokens, which
    keep their positions."""
    w = {name.removeprefix("model.transformer."): value.double() for name, value in weights.items()}
    heads, key_heads, eps, theta = keys["n_heads"], keys["n_kv_heads"], keys["rms_norm_eps"], keys["rope_theta"]
    x = w["wte.weight"][ids_L]
    for i in range(keys["n_layers"]):
        block = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if f"blocks.{i}." in name}
        normed = norm(x, block["attn_norm.weight"], eps)
        q, k, v = (normed @ block[f"{name}.weight"].T for name in ("q_proj", "k_proj", "v_proj"))
        x = x + attention(q, k, v, heads, key_heads, theta, hidden) @ block["attn_out.weight"].T
        normed = norm(x, block["ff_norm.weight"], eps)
        gate = normed @ block["ff_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (normed @ block["up_proj.weight"].T)) @ block["ff_out.weight"].T
    return norm(x, w["ln_f.weight"], eps) @ w.get("ff_out.weight", w["wte.weight"]).T


def dream_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row under a Dream checkpoint: those of Qwen2 without causal mask, shifted right by one."""
    logits = converted_logits(weights, keys, ids_L)
    return torch.cat((logits[:1], logits[:-1]))


def converted_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row under Llama, Qwen2 (biases) or Qwen3 (norms of heads) without causal mask or shift."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    heads, key_heads = keys["num_attention_heads"], keys["num_key_value_heads"]
    eps, theta = keys["rms_norm_eps"], keys["rope_theta"]
    x = w["embed_tokens.weight"][ids_L]
    for i in range(keys["num_hidden_layers"]):
        layer = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if f"layers.{i}." in name}
        normed = norm(x, layer["input_layernorm.weight"], eps)
        q, k, v = (
            normed @ layer[f"self_attn.{name}.weight"].T + layer.get(f"self_attn.{name}.bias", torch.zeros(1))
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if "self_attn.q_norm.weight" in layer:
            q = per_head(q, layer["self_attn.q_norm.weight"], eps)
            k = per_head(k, layer["self_attn.k_norm.weight"], eps)
        x = x + attention(q, k, v, heads, key_heads, theta) @ layer["self_attn.o_proj.weight"].T
        normed = norm(x, layer["post_attention_layernorm.weight"], eps)
        gate = normed @ layer["mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (normed @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"], eps) @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


def llada_moe_logits(weights: dict[str, Tensor], keys: dict, ids_L: Tensor) -> Tensor:
    """Logits (L, V) of one row under a LLaDA-MoE checkpoint, token by token through its experts."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    heads, key_heads = keys["num_attention_heads"], keys["num_key_value_heads"]
    eps, theta = keys["rms_norm_eps"], keys["rope_theta"]

    def mlp(x: Tensor, name: str) -> Tensor:
        gate = x @ w[f"{name}.gate_proj.weight"].T
        return (gate * gate.sigmoid() * (x @ w[f"{name}.up_proj.weight"].T)) @ w[f"{name}.down_proj.weight"].T

    x = w["embed_tokens.weight"][ids_L]
    for i, routed in enumerate(keys["moe_layer_freq"]):
        at = f"layers.{i}"
        normed = norm(x, w[f"{at}.input_layernorm.weight"], eps)
        q, k, v = (normed @ w[f"{at}.self_attn.{name}_proj.weight"].T for name in "qkv")
        q = per_head(q, w[f"{at}.self_attn.q_norm.weight"], eps)
        k = per_head(k, w[f"{at}.self_attn.k_norm.weight"], eps)
        x = x + attention(q, k, v, heads, key_heads, theta) @ w[f"{at}.self_attn.o_proj.weight"].T
        normed = norm(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        if not routed:
            x = x + mlp(normed, f"{at}.mlp")
            continue
        added = torch.zeros_like(x)
        for token, row in enumerate(normed):
            share = (w[f"{at}.mlp.gate.weight"] @ row).softmax(0) + w.get(f"{at}.mlp.expert_bias", 0.0)
            for expert in share.argsort(descending=True)[: keys["num_experts_per_tok"]].tolist():
                added[token] += share[expert] * mlp(row[None], f"{at}.mlp.experts.{expert}")[0]
        shared = mlp(normed, f"{at}.shared_expert") if keys["shared_expert_intermediate_size"] else 0.0
        x = x + added + shared
    return norm(x, w["norm.weight"], eps) @ w["lm_head.weight"].T


def norm(x_LD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm."""
    return x_LD / (x_LD.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight_D


def per_head(x_LD: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of each head's numbers."""
    size = len(weight_E)
    return torch.cat([norm(x_LD[:, i : i + size], weight_E, eps) for i in range(0, x_LD.shape[1], size)], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, key_heads: int, theta: float, hidden: int = 0) -> Tensor:
    """Every position attends to every other but the ``hidden`` first; a group of query heads shares each key head.

    (L, D) to (L, D).
    """
    length, size = q.shape[0], q.shape[1] // heads
    mixed = []
    for h in range(heads):
        shared = h // (heads // key_heads)
        q_h = rotated(q[:, h * size : (h + 1) * size], theta)
        k_h = rotated(k[:, shared * size : (shared + 1) * size], theta)
        v_h = v[:, shared * size : (shared + 1) * size]
        scores = q_h @ k_h.T / math.sqrt(size)
        scores[:, :hidden] = -math.inf
        mixed.append(torch.softmax(scores, dim=-1) @ v_h)
    return torch.cat(mixed, dim=-1).view(length, -1)


def rotated(x_LE: Tensor, theta: float) -> Tensor:
    """Each pair (i, i + E / 2) turned by the angle ``position * theta^(-2 i / E)``."""
    length, size = x_LE.shape
    out = x_LE.clone()
    for i in range(size // 2):
        angle = torch.arange(length, dtype=torch.float64) * theta ** (-2 * i / size)
        first, second = x_LE[:, i], x_LE[:, i + size // 2]
        out[:, i] = first * angle.cos() - second * angle.sin()
        out[:, i + size // 2] = second * angle.cos() + first * angle.sin()
    return out
