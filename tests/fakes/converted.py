"""Small random checkpoints of autoregressive models, and of such models converted in dllm's A2D layout.

Tokens: ids 0 to 255 are bytes, then Qwen's or Llama's special tokens; the embedding has spare rows behind them.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.fakes.hub_models import (
    EMBEDDING_ROWS,
    QWEN_SPECIAL,
    _qwen2_config,
    _write_config,
    _write_weights,
    qwen2_shapes,
    write_llama,
    write_qwen2,
    write_tokenizer,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MASK = "<|mask|>"
HEAD_DIM = 12
"""Not the width over the heads, as in Qwen3-0.6B."""


def write_qwen3(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``Qwen/Qwen3-0.6B`` in small."""
    keys = _qwen2_config() | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    keys |= {"attention_bias": False, "head_dim": HEAD_DIM, "eos_token_id": 258, **(config or {})}
    _write_config(folder, keys)
    _write_weights(folder, qwen3_shapes(keys), shards, seed, std)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return write_tokenizer(folder, QWEN_SPECIAL, named, CHATML)


def qwen3_shapes(keys: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of a Qwen3 checkpoint."""
    width, size = keys["hidden_size"], keys["head_dim"]
    shapes = qwen2_shapes(keys, biases=False)
    for i in range(keys["num_hidden_layers"]):
        at = f"model.layers.{i}.self_attn"
        query, key = size * keys["num_attention_heads"], size * keys["num_key_value_heads"]
        shapes |= {f"{at}.q_norm.weight": (size,), f"{at}.k_norm.weight": (size,)}
        shapes |= {f"{at}.q_proj.weight": (query, width), f"{at}.o_proj.weight": (width, query)}
        shapes |= {f"{at}.k_proj.weight": (key, width), f"{at}.v_proj.weight": (key, width)}
    return shapes


ORIGINALS = {"llama": write_llama, "qwen2": write_qwen2, "qwen3": write_qwen3}


def write_a2d(
    folder: Path,
    original: str = "qwen3",
    *,
    shards: int = 1,
    seed: int = 0,
    std: float = 0.1,
    config: dict | None = None,
    mask: str | None = MASK,
) -> Path:
    """``dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1`` in small: the mask token is in the tokenizer's files alone.

    As on the hub, special_tokens_map.json names it, and an output layer is stored beside a tied embedding. Without
    ``mask`` it is what dllm's ``convert.py`` writes, before any training: no file names a mask token.
    """
    ORIGINALS[original](folder, shards=shards, seed=seed, std=std, config=config)
    keys = json.loads((folder / "config.json").read_text())
    keys |= {"architectures": [f"A2D{original.capitalize()}LMHeadModel"], "model_type": f"a2d-{original}"}
    if keys["tie_word_embeddings"] and mask:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    keys.pop("mask_token_id", None)
    _write_config(folder, keys)
    if mask is None:
        return folder
    add_mask(folder, mask)
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": mask}}))
    return folder


def add_mask(folder: Path, name: str) -> int:
    """Add one special token behind the tokenizer's last; returns its id."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    number = 1 + max(token["id"] for token in stored["added_tokens"])
    assert number < EMBEDDING_ROWS
    stored["added_tokens"].append(stored["added_tokens"][-1] | {"id": number, "content": name})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return number
