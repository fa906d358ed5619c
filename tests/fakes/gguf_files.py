"""A small checkpoint of a Llama written as llama.cpp writes it; needs the package gguf."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.models.families.cases import config_of

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, file: Path, *, architecture: str = "llama", more: dict[str, int] | None = None) -> Path:
    """The model and tokenizer in a folder as one file, in float32.

    Args:
        architecture: the name that the header gives. more: further whole numbers of the header.
    """
    from gguf import GGUFWriter

    keys = config_of(folder)
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(keys["num_hidden_layers"])
    writer.add_context_length(keys["max_position_embeddings"])
    writer.add_embedding_length(keys["hidden_size"])
    writer.add_feed_forward_length(keys["intermediate_size"])
    writer.add_head_count(keys["num_attention_heads"])
    writer.add_head_count_kv(keys["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(keys["rms_norm_eps"])
    writer.add_rope_freq_base(keys["rope_theta"])
    writer.add_vocab_size(keys["vocab_size"])
    for name, number in (more or {}).items():
        writer.add_uint32(name, number)
    _add_tokenizer(writer, folder, keys["vocab_size"])
    for name, value in load_file(folder / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name), _permuted(name, value, keys))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer, folder: Path, rows: int) -> None:
    stored = json.loads((folder / "tokenizer.json").read_text())
    named = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    special = [token["content"] for token in stored["added_tokens"]]
    tokens = [*vocabulary, *special, "ab"]
    assert len(tokens) == rows
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index(named["bos_token"]))
    writer.add_eos_token_id(tokens.index(named["eos_token"]))
    writer.add_pad_token_id(tokens.index(named["eos_token"]))
    writer.add_chat_template(named["chat_template"])


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_IN_LAYERS[rest.removesuffix('.weight')]}.weight"


def _permuted(name: str, value: np.ndarray, keys: dict) -> np.ndarray:
    """llama.cpp keeps each pair that a rotation turns side by side; the hub's files keep its halves apart."""
    heads = {"q_proj": keys["num_attention_heads"], "k_proj": keys["num_key_value_heads"]}
    count = next((number for part, number in heads.items() if part in name), None)
    if count is None:
        return value
    halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
