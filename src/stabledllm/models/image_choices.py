"""The image settings of a model, from its config.json: those it was trained with, or those that MMaDA publishes."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

from stabledllm.errors import UserError
from stabledllm.models.adapter_base import ADAPTER_CONFIG, named_base
from stabledllm.models.families.mmada import MMadaConfig
from stabledllm.models.families.source import read_config
from stabledllm.models.loading import model_folder
from stabledllm.models.new import pattern_of

KEYS = {"tokenizer": "image_tokenizer", "side": "image_side", "max_text": "image_max_text"}
"""The choices, and the keys of config.json that keep them."""
_PUBLISHED_CODEBOOK = 8192
_PUBLISHED = {"tokenizer": "showlab/magvitv2", "max_text": 512}
_PIXELS = 16
"""Side of the square that one image token of a published model covers."""


def image_choices(model: str) -> dict[str, Any]:
    """The ``tokenizer``, ``side`` and ``max_text`` of a model's images, as far as they are known.

    An adapter has those of its base.

    Raises:
        UserError: no such model, or one that has no image tokens.
    """
    folder = model_folder(pattern_of(model))
    if (folder / ADAPTER_CONFIG).is_file():
        return image_choices(named_base(folder))
    config = read_config(folder)
    if config.get("model_type") != MMadaConfig.model_type:
        raise UserError(f"model '{model}': expected MMaDA, which has image tokens, to work on pictures, found another.")
    stored = {choice: config[key] for choice, key in KEYS.items() if config.get(key) is not None}
    for key in ("num_vq_tokens", "codebook_size", *KEYS.values()):
        value, kind = config.get(key), str if key == KEYS["tokenizer"] else int
        if value is not None and (type(value) is not kind or (kind is int and value < 1)):
            words = "a name" if kind is str else "a whole number of at least 1"
            raise UserError(f"{folder / 'config.json'}: {key}: expected {words}, found {value!r}.")
    if config.get("codebook_size") != _PUBLISHED_CODEBOOK:
        return stored
    published = dict(_PUBLISHED)
    if tokens := config.get("num_vq_tokens"):
        published["side"] = _PIXELS * math.isqrt(tokens)
    return published | stored


def keep_image_choices(config: PretrainedConfig, choices: dict[str, Any]) -> None:
    """Write the image settings of training into a model's config, so that generation and evaluation use the same."""
    for choice, key in KEYS.items():
        setattr(config, key, choices[choice])
