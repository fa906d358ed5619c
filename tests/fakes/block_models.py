"""Small random checkpoints of models that are trained in blocks, in the layouts of SDAR (TraDo) and Fast-dLLM v2.

Tokens: ids 0 to 255 are bytes, then Qwen's special tokens and the mask token; the embedding has spare rows behind them.
"""

from __future__ import annotations

from pathlib import Path

from tests.fakes.converted import CHATML, HEAD_DIM, add_mask, qwen3_shapes
from tests.fakes.hub_models import (
    QWEN_SPECIAL,
    _qwen2_config,
    _write_config,
    _write_weights,
    qwen2_shapes,
    write_tokenizer,
)

MASK_ID = 259
SDAR_MASK, FAST_DLLM_MASK = "<|MASK|>", "|<MASK>|"


def write_sdar(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``JetLM/SDAR-1.7B-Chat`` in small: neither the size of a block nor the mask token is in config.json."""
    keys = _qwen2_config() | {
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "auto_map": {
            "AutoConfig": "configuration_sdar.SDARConfig",
            "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
        },
        "eos_token_id": 258,
        "fuse_cross_entropy": True,
        "head_dim": HEAD_DIM,
        "max_window_layers": 28,
        "model_type": "sdar",
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    keys.pop("mask_token_id", None)
    keys |= config or {}
    _write_config(folder, keys)
    _write_weights(folder, qwen3_shapes(keys), shards, seed, std)
    return _with_tokenizer(folder, SDAR_MASK)


def write_fast_dllm(
    folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None
) -> Path:
    """``Efficient-Large-Model/Fast_dLLM_v2_1.5B`` in small: Qwen2.5 with blocks and a key that is misspelt."""
    keys = _qwen2_config() | {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": 8,
        "conplemenrary_mask": True,
        "eos_token_id": 258,
        "layer_types": ["full_attention"] * 2,
        "model_type": "Fast_dLLM_Qwen",
        "sliding_window": None,
        "tie_word_embeddings": True,
    }
    keys.pop("mask_token_id", None)
    keys |= config or {}
    _write_config(folder, keys)
    _write_weights(folder, qwen2_shapes(keys), shards, seed, std)
    return _with_tokenizer(folder, FAST_DLLM_MASK)


def _with_tokenizer(folder: Path, mask: str) -> Path:
    write_tokenizer(folder, QWEN_SPECIAL, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML)
    assert add_mask(folder, mask) == MASK_ID
    return folder
