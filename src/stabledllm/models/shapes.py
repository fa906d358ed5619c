"""The shape of a model without its weights, from which parameter counts and memory follow.

It is read from a local folder's ``config.json`` or, for the models of the shipped recipes, from the table below, so
that nothing is downloaded. Loads no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stabledllm.errors import UserError, did_you_mean
from stabledllm.models.adapter_base import ADAPTER_CONFIG, named_base
from stabledllm.models.block_layouts import BLOCK_LAYOUTS, FAST_DLLM, LLADA2, SDAR
from stabledllm.models.moe_shapes import PUBLISHED_MOE, read_moe_shape
from stabledllm.models.new import pattern_of
from stabledllm.models.shape import CAUSAL, Shape
from stabledllm.models.shipped import shipped_folder
from stabledllm.runtime.files import read_json

_LLADA = Shape("llada", layers=32, width=4096, heads=32, kv_heads=32, hidden=12288, vocabulary=126464)
_QWEN2 = Shape(
    "qwen2", layers=28, width=3584, heads=28, kv_heads=4, hidden=18944, vocabulary=152064, qkv_bias=True
)  # fmt: skip
_QWEN3 = Shape(
    "qwen3", layers=36, width=4096, heads=32, kv_heads=8, hidden=12288, vocabulary=151936, head_dim=128, head_norms=True
)  # fmt: skip
_LLAMA = Shape("llama", layers=32, width=4096, heads=32, kv_heads=8, hidden=14336, vocabulary=128256)
_MMADA = replace(_LLADA, model_type="mmada", vocabulary=134656)
_DREAM = replace(_QWEN2, model_type="Dream")
_SDAR_8B = replace(_QWEN3, model_type=SDAR)
_SDAR_4B = replace(_SDAR_8B, width=2560, hidden=9728)
_SDAR_1_7B = replace(_SDAR_8B, layers=28, width=2048, heads=16, hidden=6144)
_FAST_DLLM_7B = replace(_QWEN2, model_type=FAST_DLLM)
_FAST_DLLM_1_5B = Shape(
    FAST_DLLM, layers=28, width=1536, heads=12, kv_heads=2, hidden=8960, vocabulary=151936, tied=True, qkv_bias=True
)  # fmt: skip
PUBLISHED = {
    "GSAI-ML/LLaDA-8B-Base": _LLADA,
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA,
    "GSAI-ML/LLaDA-1.5": _LLADA,
    "Gen-Verse/MMaDA-8B-Base": _MMADA,
    "Gen-Verse/MMaDA-8B-MixCoT": _MMADA,
    "Dream-org/Dream-v0-Base-7B": _DREAM,
    "Dream-org/Dream-v0-Instruct-7B": _DREAM,
    "JetLM/SDAR-1.7B-Chat": _SDAR_1_7B,
    "JetLM/SDAR-4B-Chat": _SDAR_4B,
    "JetLM/SDAR-8B-Chat": _SDAR_8B,
    "Gen-Verse/TraDo-4B-Instruct": _SDAR_4B,
    "Gen-Verse/TraDo-8B-Instruct": _SDAR_8B,
    "Gen-Verse/TraDo-8B-Thinking": _SDAR_8B,
    "Efficient-Large-Model/Fast_dLLM_v2_1.5B": _FAST_DLLM_1_5B,
    "Efficient-Large-Model/Fast_dLLM_v2_7B": _FAST_DLLM_7B,
    "Qwen/Qwen2.5-7B": _QWEN2,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2,
    "Qwen/Qwen3-8B": _QWEN3,
    "Qwen/Qwen3-8B-Base": _QWEN3,
    "meta-llama/Llama-3.1-8B": _LLAMA,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA,
    **PUBLISHED_MOE,
}
"""Shapes as their hub pages' config.json state them."""


def shape_of(model: str) -> Shape:
    """The shape of ``tiny``, of a model (or an adapter's base) in a local folder, or of one in :data:`PUBLISHED`.

    Raises:
        UserError: another model, or a config that does not describe such a transformer.
    """
    model = pattern_of(model)
    folder = shipped_folder(model) or Path(model).expanduser()
    path = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        return shape_of(named_base(folder))
    if not path.is_file():
        if model in PUBLISHED:
            return PUBLISHED[model]
        raise UserError(
            f"model '{model}': expected a local folder with config.json or a model whose shape is known, found "
            f"neither{did_you_mean(model, ('tiny', *PUBLISHED))}."
        )
    config = read_json(path)
    if not isinstance(config, Mapping):
        raise UserError(f"{path}: expected an object, found {type(config).__name__}.")
    return read_shape(config, str(path))


def known_shape(model: str) -> Shape | None:
    """The model's shape, or None where only loading it would tell."""
    try:
        return shape_of(model)
    except UserError:
        return None


def read_shape(config: Mapping, where: str) -> Shape:
    """The shape that a config.json describes, by the names of its own architecture.

    Raises:
        UserError: a model type or a missing size that it cannot be read from.
    """
    kind = config.get("model_type")
    if kind == LLADA2 or (kind in _LLADA_MOE and config.get("num_experts")):
        return read_moe_shape(config, where)
    original = str(kind).removeprefix("a2d-")
    if kind in ("llada", "mmada") and "d_model" in config:
        names = _LLADA_NAMES
    elif original in CAUSAL or kind in BLOCK_LAYOUTS or kind in ("Dream", "dream", "stabledllm_tiny"):
        names = _LLAMA_NAMES
    else:
        types = ", ".join(sorted({"llada", "mmada", "Dream", "stabledllm_tiny", *BLOCK_LAYOUTS, *CAUSAL}))
        raise UserError(f"{where}: expected model_type in {types}, found {kind!r}.")
    missing = [name for field, name in names.items() if field not in _OPTIONAL and name not in config]
    if missing:
        raise UserError(f"{where}: expected the key '{missing[0]}' of a {kind}, found none.")
    sizes = {field: config[name] for field, name in names.items() if config.get(name) is not None}
    for name in (*(names[field] for field in sizes if field != "tied"), "embedding_size", "new_vocab_size"):
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{where}: {name}: expected a whole number of at least 1, found {value!r}.")
    if kind == SDAR:
        sizes.setdefault("head_dim", 128)
    sizes["kv_heads"] = sizes.get("kv_heads", sizes["heads"])
    # LLaDA's embedding may be padded beyond the vocabulary; MMaDA's holds the image tokens as well.
    sizes["vocabulary"] = config.get("embedding_size") or config.get("new_vocab_size") or sizes["vocabulary"]
    return Shape(
        kind,
        **sizes,
        qkv_bias=bool(config.get("include_qkv_bias") or config.get("attention_bias") or original in _BIASED),
        head_norms=original in ("qwen3", SDAR),
        fused=kind == "stabledllm_tiny",
    )


_LLADA_MOE = {"llada", "lladamoe", "llada_moe"}
"""What the files of LLaDA-MoE have for their type; those of LLaDA have no experts."""
_BIASED = {"qwen2", "Dream", "dream", FAST_DLLM}
_OPTIONAL = {"kv_heads", "head_dim", "tied"}
_LLADA_NAMES = {
    "layers": "n_layers", "width": "d_model", "heads": "n_heads", "kv_heads": "n_kv_heads",
    "hidden": "mlp_hidden_size", "vocabulary": "vocab_size", "tied": "weight_tying",
}  # fmt: skip
_LLAMA_NAMES = {
    "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "hidden": "intermediate_size", "vocabulary": "vocab_size",
    "head_dim": "head_dim", "tied": "tie_word_embeddings",
}  # fmt: skip
