"""The autoregressive model that is converted: from a folder, the hub or a GGUF file, as transformers loads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.conversion.gguf_file import check_gguf, is_gguf
from stabledllm.models.conversion.kinds import check_convertible
from stabledllm.models.families.config_values import check_numbers
from stabledllm.models.families.source import Source, read_config
from stabledllm.models.families.transformers_own import load_transformers
from stabledllm.models.families.weights import held_weights
from stabledllm.models.hf_tokenizer import read_tokenizer
from stabledllm.models.loading import model_folder
from stabledllm.models.names import is_adapter
from stabledllm.models.pretrained import read_pretrained
from stabledllm.models.soundness import check_finite


@dataclass(frozen=True)
class Original:
    """An autoregressive model with its tokenizer, and the keys of its config.json."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    keys: dict[str, Any]

    @property
    def what(self) -> str:
        """The words that begin an error message about this model."""
        return f"model '{self.name}'"


def load_original(name: str, dtype: str = "auto", allow_pickle: bool = False) -> Original:
    """Load the model of that name: a folder, ``OWNER/NAME`` on the hub, or a GGUF file.

    Args:
        dtype: of the weights: a name of torch's, or ``auto``: what config.json says, float32 for a GGUF file.
        allow_pickle: read weights from PyTorch's own files where there are no safetensors.

    Raises:
        UserError: no such model, one of another architecture, layers with another attention, quantised weights, or
            weights that are damaged.
    """
    original = _from_gguf(name, dtype) if is_gguf(name) else _from_folder(name, dtype, allow_pickle)
    check_finite(original.model, original.what)
    return original


def _from_folder(name: str, dtype: str, allow_pickle: bool) -> Original:
    folder = model_folder(name, allow_pickle)
    if is_adapter(str(folder)):
        raise UserError(f"model '{name}': expected a whole model, found an adapter; stabledllm merge makes one of it.")
    config = read_config(folder)
    check_convertible(config, f"model '{name}'")
    if dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    source = Source(name, folder, config, _dtype(dtype, f"model '{name}'"))
    held = held_weights(folder, source.what, allow_pickle)
    check_numbers(config, str(source.config_file), held.shapes)
    source = Source(name, folder, config, source.dtype, held=held)
    model = load_transformers(AutoModelForCausalLM, source, source.attention, strict=True)
    with as_user_error(f"{source.what}: expected a tokenizer in {folder}", "found none that loads"):
        return Original(name, model.eval(), read_tokenizer(folder, trust_remote_code=False), config)


def _from_gguf(name: str, dtype: str) -> Original:
    path = Path(name).expanduser()
    check_gguf(path)
    form = {"gguf_file": path.name}
    with as_user_error(f"{path}: expected a GGUF file that transformers can read"):
        model = read_pretrained(
            AutoModelForCausalLM,
            path.parent,
            dtype=_dtype("float32" if dtype == "auto" else dtype, str(path)),
            attn_implementation="sdpa",
            **form,
        )
        rows = model.get_input_embeddings().weight.shape[0]
        tokenizer = _within(read_pretrained(AutoTokenizer, path.parent, **form), rows)
    keys = _own_keys(model.config)
    check_convertible(keys, str(path))
    return Original(name, model.eval(), tokenizer, keys)


def _within(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer without tokens beyond the embedding: transformers adds ``<|endoftext|>`` where it misses it."""
    if max(tokenizer.get_vocab().values()) < rows:
        return tokenizer
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < rows]
    roles = {role: name for role, name in tokenizer.special_tokens_map.items() if isinstance(name, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), chat_template=tokenizer.chat_template, **roles
    )


def _own_keys(config: PretrainedConfig) -> dict[str, Any]:
    """The keys of a configuration that its architecture defines, and its special tokens."""
    common = PretrainedConfig().to_dict()
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "architectures", "model_type")
    return {
        key: value
        for key, value in config.to_dict().items()
        if (key not in common or key in special) and key not in ("quantization_config", "_name_or_path")
    }


def _dtype(name: str, what: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"{what}: expected dtype float32, bfloat16 or float16, found '{name}'.")
    return found
