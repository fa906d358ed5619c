"""How a model's images are made, known from its config.json: what it was trained with, or what MMaDA publishes."""

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
"""Of a published token's side."""


def image_choices(model: str) -> dict[str, Any]:
    """``tokenizer``, ``side`` and ``max_text``, as far as they are known of a model; of an adapter those of its base.

    Raises:
        UserError: no such model, or one that has no image tokens.
    """
    folder = model_folder(pattern_of(model))
    if (folder / ADAPTER_CONFIG).is_file():
        return image_choices(named_base(folder))
    config = read_config(folder)
    if config.get("model_type") != MMadaConfig.model_type:
        raise UserError(f"model '{model}': expected MMaDA, which has image tokens, to work on pictures, found another.")
    found = {choice: config[key] for choice, key in KEYS.items() if config.get(key) is not None}
    for key in ("num_vq_tokens", "codebook_size", *KEYS.values()):
        value, kind = config.get(key), str if key == KEYS["tokenizer"] else int
        if value is not None and (type(value) is not kind or (kind is int and value < 1)):
            words = "a name" if kind is str else "a whole number of at least 1"
            raise UserError(f"{folder / 'config.json'}: {key}: expected {words}, found {value!r}.")
    if config.get("codebook_size") != _PUBLISHED_CODEBOOK:
        return found
    published = dict(_PUBLISHED)
    if tokens := config.get("num_vq_tokens"):
        published["side"] = _PIXELS * math.isqrt(tokens)
    return published | found


def keep_image_choices(config: PretrainedConfig, choices: dict[str, Any]) -> None:
    """Note in a model's config what it is trained with, so that it is drawn and evaluated alike."""
    for choice, key in KEYS.items():
        setattr(config, key, choices[choice])
