"""Small random checkpoints in the hub's exact layouts: config.json, safetensors (single or sharded), a tokenizer.

``write_llada(folder, **sizes)`` and its siblings write what the publishers' repositories hold, name by name and key
by key, without any of the library's own code, and return the folder.

Tokens: ids 0 to 255 are bytes, then the family's special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

LLADA_SPECIAL = {
    "<|endoftext|>": 256,
    "<|eot_id|>": 257,
    "<|start_header_id|>": 258,
    "<|end_header_id|>": 259,
    "<|startoftext|>": 260,
    "<|mdm_mask|>": 261,
}
QWEN_SPECIAL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
DREAM_SPECIAL = QWEN_SPECIAL | {"<|beginoftext|>": 259, "<|mask|>": 260}
LLAMA_SPECIAL = {
    "<|begin_of_text|>": 256,
    "<|eot_id|>": 257,
    "<|start_header_id|>": 258,
    "<|end_header_id|>": 259,
}
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMBEDDING_ROWS = 272


def write_llada(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``GSAI-ML/LLaDA-8B-Instruct`` in small; ``config`` overrides keys (d_model, n_layers, n_heads, ...)."""
    keys = _llada_config() | (config or {})
    _write_config(folder, keys)
    _write_weights(folder, llada_shapes(keys), shards, seed, std)
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_tokenizer(folder, LLADA_SPECIAL, specials, _HEADERS)
    return folder


def write_mmada(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``Gen-Verse/MMaDA-8B-Base`` in small: 16 rows of image tokens behind the text's."""
    rows = EMBEDDING_ROWS + 16
    extended = {
        "architectures": ["MMadaModelLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_mmada.MMadaModelLM"},
        "model_type": "mmada",
        "vocab_size": rows,
        "embedding_size": rows,
        "llm_vocab_size": EMBEDDING_ROWS,
        "new_vocab_size": rows,
        "codebook_size": 16,
        "num_vq_tokens": 4,
        "num_new_special_tokens": 0,
    }
    keys = _llada_config() | extended | (config or {})
    _write_config(folder, keys)
    _write_weights(folder, llada_shapes(keys), shards, seed, std)
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_tokenizer(folder, LLADA_SPECIAL, specials, _HEADERS)
    return folder


def write_dream(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``Dream-org/Dream-v0-Instruct-7B`` in small; its tokenizer is a class of its own around Qwen2's files."""
    keys = _qwen2_config() | {
        "architectures": ["DreamModel"],
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": 256,
        "eos_token_id": 256,
        "mask_token_id": DREAM_SPECIAL["<|mask|>"],
        "model_type": "Dream",
        "pad_token_id": 256,
    }
    keys |= config or {}
    _write_config(folder, keys)
    _write_weights(folder, qwen2_shapes(keys), shards, seed, std)
    _write_slow_tokenizer(folder, DREAM_SPECIAL, _CHATML)
    return folder


def write_llada_moe(
    folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None
) -> Path:
    """``inclusionAI/LLaDA-MoE-7B-A1B-Instruct`` in small; the hub's file says ``llada`` for its type."""
    keys = {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"},
        "clip_qkv": None,
        "dense_intermediate_size": 56,
        "eos_token_id": 256,
        "expert_intermediate_size": 24,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "mask_token_id": LLADA_SPECIAL["<|mdm_mask|>"],
        "max_position_embeddings": 4096,
        "model_type": "llada",
        "moe_layer_freq": [1, 1],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "pad_token_id": 256,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": EMBEDDING_ROWS,
    }
    keys |= config or {}
    _write_config(folder, keys)
    _write_weights(folder, llada_moe_shapes(keys), shards, seed, std)
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_tokenizer(folder, LLADA_SPECIAL, specials, _HEADERS)
    return folder


def llada_moe_shapes(keys: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of a LLaDA-MoE checkpoint."""
    width, size = keys["hidden_size"], keys["hidden_size"] // keys["num_attention_heads"]
    key_width = size * keys["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (keys["vocab_size"], width), "model.norm.weight": (width,)}
    if not keys["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (keys["vocab_size"], width)

    def mlp(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
        sides = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
        return {f"{name}.{side}.weight": shape for side, shape in sides.items()}

    for i, routed in enumerate(keys["moe_layer_freq"]):
        layer = {
            "input_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (width, width),
            "self_attn.k_proj.weight": (key_width, width),
            "self_attn.v_proj.weight": (key_width, width),
            "self_attn.o_proj.weight": (width, width),
            "self_attn.q_norm.weight": (size,),
            "self_attn.k_norm.weight": (size,),
            "post_attention_layernorm.weight": (width,),
        }
        if routed:
            layer["mlp.gate.weight"] = (keys["num_experts"], width)
            for e in range(keys["num_experts"]):
                layer |= mlp(f"mlp.experts.{e}", keys["expert_intermediate_size"])
            if keys["moe_router_enable_expert_bias"]:
                layer["mlp.expert_bias"] = (keys["num_experts"],)
            if keys["shared_expert_intermediate_size"]:
                layer |= mlp("shared_expert", keys["shared_expert_intermediate_size"])
        else:
            layer |= mlp("mlp", keys["dense_intermediate_size"])
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_qwen2(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``Qwen/Qwen2.5-7B-Instruct`` in small."""
    keys = _qwen2_config() | {"bos_token_id": 256, "eos_token_id": 258} | (config or {})
    _write_config(folder, keys)
    _write_weights(folder, qwen2_shapes(keys), shards, seed, std)
    write_tokenizer(folder, QWEN_SPECIAL, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, _CHATML)
    return folder


def write_llama(folder: Path, *, shards: int = 1, seed: int = 0, std: float = 0.1, config: dict | None = None) -> Path:
    """``meta-llama/Llama-3.1-8B-Instruct`` in small; its tokenizer names no padding token."""
    keys = _qwen2_config() | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "mlp_bias": False,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    keys |= config or {}
    for absent in ("max_window_layers", "sliding_window", "use_sliding_window"):
        keys.pop(absent, None)
    _write_config(folder, keys)
    _write_weights(folder, qwen2_shapes(keys, biases=False), shards, seed, std)
    write_tokenizer(folder, LLAMA_SPECIAL, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, _HEADERS)
    return folder


def llada_shapes(keys: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of a LLaDA checkpoint."""
    width, hidden, rows = keys["d_model"], keys["mlp_hidden_size"], keys["embedding_size"]
    key_width = width // keys["n_heads"] * keys["n_kv_heads"]
    shapes = {"model.transformer.wte.weight": (rows, width), "model.transformer.ln_f.weight": (width,)}
    if not keys["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = (rows, width)
    for i in range(keys["n_layers"]):
        block = {
            "attn_norm": (width,),
            "q_proj": (width, width),
            "k_proj": (key_width, width),
            "v_proj": (key_width, width),
            "attn_out": (width, width),
            "ff_norm": (width,),
            "ff_proj": (hidden, width),
            "up_proj": (hidden, width),
            "ff_out": (width, hidden),
        }
        shapes |= {f"model.transformer.blocks.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def qwen2_shapes(keys: dict, *, biases: bool = True) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of a Qwen2 (with biases) or Llama checkpoint."""
    width, hidden, rows = keys["hidden_size"], keys["intermediate_size"], keys["vocab_size"]
    key_width = width // keys["num_attention_heads"] * keys["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    if not keys["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, width)
    for i in range(keys["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (width, width),
            "self_attn.k_proj.weight": (key_width, width),
            "self_attn.v_proj.weight": (key_width, width),
            "self_attn.o_proj.weight": (width, width),
            "post_attention_layernorm.weight": (width,),
            "mlp.gate_proj.weight": (hidden, width),
            "mlp.up_proj.weight": (hidden, width),
            "mlp.down_proj.weight": (width, hidden),
        }
        if biases:
            layer |= {
                "self_attn.q_proj.bias": (width,),
                "self_attn.k_proj.bias": (key_width,),
                "self_attn.v_proj.bias": (key_width,),
            }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_tokenizer(folder: Path, special: dict[str, int], named: dict[str, str], template: str | None) -> Path:
    """``tokenizer.json`` and ``tokenizer_config.json``: bytes, then the special tokens in the order of their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    assert {token: tokenizer.token_to_id(token) for token in special} == special
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return folder


def _write_slow_tokenizer(folder: Path, special: dict[str, int], template: str) -> None:
    """Dream's files: Qwen2's ``vocab.json`` and ``merges.txt``, and a class that only remote code defines."""
    (folder / "vocab.json").write_text(json.dumps(_byte_vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenization_dream.py").write_text("raise RuntimeError('remote code was run')\n")
    added = {str(i): {"content": token, "special": True, "normalized": False} for token, i in special.items()}
    config = {
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "added_tokens.json").write_text(json.dumps(special))


def _byte_vocabulary() -> dict[str, int]:
    """The 256 characters that stand for bytes, each at its byte's id."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    character = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    assert set(character.values()) == set(ByteLevel.alphabet())
    return {character[b]: b for b in range(256)}


def _llada_config() -> dict:
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 32,
        "embedding_dropout": 0.0,
        "embedding_size": EMBEDDING_ROWS,
        "eos_token_id": 256,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": LLADA_SPECIAL["<|mdm_mask|>"],
        "max_sequence_length": 4096,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": 256,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": EMBEDDING_ROWS,
        "weight_tying": False,
    }


def _qwen2_config() -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": EMBEDDING_ROWS,
    }


def _write_config(folder: Path, keys: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys, indent=2))


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], shards: int, seed: int, std: float) -> None:
    """Matrices from N(0, std), biases too, norms near 1; in name order, ``shards`` files."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=generator) * std
        weights[name] = value + 1.0 if len(shape) == 1 and not name.endswith("bias") else value
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    place = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(weights)}
    for file in sorted(set(place.values())):
        chosen = {name: value for name, value in weights.items() if place[name] == file}
        save_file(chosen, folder / file, metadata={"format": "pt"})
    total = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
