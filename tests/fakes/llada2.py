"""Small random checkpoints in the layout of ``inclusionAI/LLaDA2.0-mini``.

Tokens: ids 0 to 255 are bytes, then the family's special tokens; the embedding has spare rows behind them.
"""

from __future__ import annotations

from pathlib import Path

from tests.fakes.hub_models import EMBEDDING_ROWS, _write_config, _write_weights, write_tokenizer

SPECIAL = {
    "<|endoftext|>": 256,
    "<role>": 257,
    "</role>": 258,
    "<|role_end|>": 259,
    "<|startoftext|>": 260,
    "<|mask|>": 261,
}
MASK_ID = SPECIAL["<|mask|>"]
_ROLES = (
    "{% for m in messages %}<role>{{ {'user': 'HUMAN', 'assistant': 'ASSISTANT', 'system': 'SYSTEM'}[m['role']] }}"
    "</role>{{ m['content'] }}<|role_end|>{% endfor %}"
    "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)


def write_llada2(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """LLaDA2.0-mini in small: neither the size of a block nor the mask token is in config.json."""
    keys = {
        "architectures": ["LLaDA2MoeModelLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "embedding_dropout": 0.0,
        "eos_token_id": 256,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "llada2_moe",
        "moe_intermediate_size": 24,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": 256,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 600000,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": 2,
        "transformers_version": "4.52.3",
        "use_bias": False,
        "use_cache": True,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
        "vocab_size": EMBEDDING_ROWS,
    }
    keys |= config or {}
    _write_config(folder, keys)
    _write_weights(folder, llada2_shapes(keys), shards, seed, std)
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_tokenizer(folder, SPECIAL, specials, _ROLES)
    return folder


def llada2_shapes(keys: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of a LLaDA2 checkpoint."""
    width, size = keys["hidden_size"], keys["head_dim"]
    heads, key_heads = keys["num_attention_heads"], keys["num_key_value_heads"]
    shapes = {
        "model.word_embeddings.weight": (keys["vocab_size"], width),
        "model.norm.weight": (width,),
        "lm_head.weight": (keys["vocab_size"], width),
    }

    def mlp(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
        sides = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
        return {f"{name}.{side}.weight": shape for side, shape in sides.items()}

    for i in range(keys["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "attention.query_key_value.weight": ((heads + 2 * key_heads) * size, width),
            "attention.dense.weight": (width, heads * size),
            "attention.query_layernorm.weight": (size,),
            "attention.key_layernorm.weight": (size,),
        }
        if i < keys["first_k_dense_replace"]:
            layer |= mlp("mlp", keys["intermediate_size"])
        else:
            layer["mlp.gate.weight"] = (keys["num_experts"], width)
            if keys["moe_router_enable_expert_bias"]:
                layer["mlp.gate.expert_bias"] = (keys["num_experts"],)
            for expert in range(keys["num_experts"]):
                layer |= mlp(f"mlp.experts.{expert}", keys["moe_intermediate_size"])
            if keys["num_shared_experts"]:
                layer |= mlp("mlp.shared_experts", keys["num_shared_experts"] * keys["moe_intermediate_size"])
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes
