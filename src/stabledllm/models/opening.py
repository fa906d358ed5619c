"""Opening a model's config, tokenizer and list of weights, without the weights: what can be checked in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from stabledllm.config.settings import ModelSettings
from stabledllm.models.adapter_base import named_base
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.block_layouts import BLOCK_LAYOUTS
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.families.block_loading import assumed_in_words, fill_mask_id
from stabledllm.models.families.causal_lm import is_causal_lm
from stabledllm.models.families.config import take_mask
from stabledllm.models.families.config_values import check_numbers, check_values
from stabledllm.models.families.registry import FAMILIES, find_family
from stabledllm.models.families.source import Source, read_config
from stabledllm.models.families.weights import held_weights
from stabledllm.models.hf_tokenizer import HFTokenizer, load_tokenizer
from stabledllm.models.loading import model_folder
from stabledllm.models.names import is_adapter
from stabledllm.models.new import is_new, pattern_of
from stabledllm.models.pretrained import read_pretrained
from stabledllm.models.tiny import TinyMDMConfig


@dataclass(frozen=True)
class Opened:
    """What a model's files say of it. ``weights``: how many numbers they hold; None for a new model's, or unknown."""

    name: str
    family: str
    autoregressive: bool
    tokenizer: ByteTokenizer | HFTokenizer
    weights: int | None
    assumed: str = ""
    """What its config.json leaves out, and what stands for it, in words."""


def open_model(settings: ModelSettings) -> Opened:
    """Open the config, the tokenizer and the list of weights of a model, or of an adapter's base.

    Raises:
        UserError: no such model, another family, an impossible value in its config, missing weights, or a tokenizer
            that does not load or does not fit.
    """
    name = settings.model
    base = named_base(Path(name).expanduser()) if is_adapter(name) else name
    folder = model_folder(pattern_of(base), settings.allow_pickle)
    config = read_config(folder)
    source = Source(base, folder, config, trust_remote_code=settings.trust_remote_code)
    held = None if is_new(base) else held_weights(folder, source.what, settings.allow_pickle)
    check_numbers(config, str(source.config_file), held and held.shapes)
    weights = sum(map(math.prod, held.shapes.values())) if held and held.shapes else None
    if source.model_type == TinyMDMConfig.model_type:
        return Opened(name, "tiny", False, ByteTokenizer(), weights)
    family = find_family(source, settings.family)
    causal = is_causal_lm(source)
    read = _config(source, family.kind)
    if settings.mask_token_id is not None:
        take_mask(read, settings.mask_token_id, source.what)
    tokenizer = load_tokenizer(
        folder,
        base,
        vocab_size=getattr(read, "embedding_size", None) or read.vocab_size,
        mask_token_id=None if causal else getattr(read, "mask_token_id", None),
        end_token=settings.end_token,
        trust_remote_code=settings.trust_remote_code,
        needs_mask=not causal,
        mask_given=settings.mask_token_id is not None,
    )
    called = next(known for known, one in FAMILIES.items() if one is family)
    return Opened(name, called, causal, tokenizer, weights, assumed_in_words(read))


def _config(source: Source, kind: type | None) -> PretrainedConfig:
    """The config with its family's defaults."""
    with as_user_error(f"{source.what}: expected the config of a {source.model_type} in {source.config_file}"):
        if kind is None:
            return read_pretrained(AutoConfig, source.folder, trust_remote_code=source.trust_remote_code)
        check_values(kind.config_class, source.config, str(source.config_file))
        config = read_pretrained(kind.config_class, source.folder)
    if config.model_type in BLOCK_LAYOUTS:
        fill_mask_id(config, source.folder)
    return config
