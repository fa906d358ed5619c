"""Loading a native family: its files are checked first, then read straight into place."""

from __future__ import annotations

from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedModel

from stabledllm.errors import UserError
from stabledllm.models.families.base import MaskedDiffusionModel
from stabledllm.models.families.source import Source
from stabledllm.models.families.weights import check_weights
from stabledllm.models.new import with_first_values


def load_native(kind: type[MaskedDiffusionModel], source: Source) -> PreTrainedModel:
    """The model of a family's class, new or of the hub; one copy of the weights is held, in ``source.dtype``.

    Raises:
        UserError: a key of the config that is not implemented, or weights that are not those of the config.
    """
    config = kind.config_class.from_pretrained(source.folder)
    _check_heads(config, source.name)
    if source.init_seed is not None:
        create = partial(kind._from_config, config, attn_implementation=source.attention)
        return with_first_values(create, source.init_seed, source.dtype)
    with torch.device("meta"):
        empty = kind(config)
    expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    tied = set(kind._tied_weights_keys) if config.tie_word_embeddings else set()
    check_weights(source.folder, source.name, expected, tied)
    return kind.from_pretrained(
        source.folder,
        config=config,
        dtype=source.dtype,
        attn_implementation=source.attention,
        local_files_only=True,
        **source.extra,
    )


def _check_heads(config: PretrainedConfig, name: str) -> None:
    width, heads, key_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    for what, whole, part in (("the width", width, heads), ("the attention heads", heads, key_heads)):
        if whole % part:
            raise UserError(f"model '{name}': expected config.json to divide {what} {whole} evenly, found {part}.")
