"""Loading of native families: the files are checked first, then read straight into place."""

from __future__ import annotations

from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedModel

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.families.config_values import check_values
from stabledllm.models.families.experts import join_experts
from stabledllm.models.families.source import Source
from stabledllm.models.families.weights import compare_weights
from stabledllm.models.new import with_first_values
from stabledllm.models.pretrained import read_pretrained


def load_native(kind: type[PreTrainedModel], source: Source) -> PreTrainedModel:
    """Load a model of a family's class or make a new one; memory holds one copy of the weights, in ``source.dtype``.

    Raises:
        UserError: a value of the config that is impossible or not implemented, or weights that are not those of the
            config.
    """
    check_values(kind.config_class, source.config, str(source.config_file))
    with as_user_error(f"{source.what}: expected the config of a {source.model_type} in {source.config_file}"):
        config = read_pretrained(kind.config_class, source.folder)
        _check_heads(config, source.name)
        if source.init_seed is not None:
            create = partial(kind._from_config, config, attn_implementation=source.attention)
            return with_first_values(create, source.init_seed, source.dtype, source.what)
        with torch.device("meta"):
            empty = kind(config)
    expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    tied = set(kind._tied_weights_keys or ()) if getattr(config, "tie_word_embeddings", False) else set()
    compare_weights(source.held.shapes, source.what, expected, tied)
    with as_user_error(f"{source.what}: expected weights that can be read in {source.folder}"):
        model = read_pretrained(
            kind,
            source.folder,
            config=config,
            dtype=source.dtype,
            attn_implementation=source.attention,
            use_safetensors=not source.held.pickled,
            **source.extra,
        )
    join_experts(model)
    return model


def _check_heads(config: PretrainedConfig, name: str) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", heads)
    for what, whole, part in (
        ("the width", width, heads),
        ("the attention heads", heads, key_heads),
        ("a head, which turns pairs of numbers,", width // heads, 2),
    ):
        if whole % part:
            raise UserError(f"model '{name}': expected config.json to divide {what} {whole} evenly, found {part}.")
