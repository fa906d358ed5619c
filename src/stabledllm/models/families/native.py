"""Loading a native family: its files are checked first, then read straight into place."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from stabledllm.models.families.attention import check_back_end
from stabledllm.models.families.base import MaskedDiffusionModel
from stabledllm.models.families.source import Source
from stabledllm.models.families.weights import check_weights


def load_native(kind: type[MaskedDiffusionModel], source: Source) -> PreTrainedModel:
    """The model of a family's class; one copy of the weights is held, in ``source.dtype``.

    Raises:
        UserError: a key of the config that is not implemented, an attention back end that is not installed, or
            weights that are not those of the config.
    """
    config = kind.config_class.from_pretrained(source.folder)
    with torch.device("meta"):
        empty = kind(config)
    expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    tied = set(kind._tied_weights_keys) if config.tie_word_embeddings else set()
    check_weights(source.folder, source.name, expected, tied)
    return kind.from_pretrained(
        source.folder,
        config=config,
        dtype=source.dtype,
        attn_implementation=check_back_end(source.attention),
        local_files_only=True,
        **source.extra,
    )
