"""A converted model's tokenizer, in files that transformers 4, which dllm pins, and transformers 5 read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError
from stabledllm.models.conversion.mask_token import MaskToken
from stabledllm.runtime.files import write_json

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, mask: MaskToken, what: str) -> None:
    """Write the tokenizer, which gets the mask token, as tokenizer.json and its two companions.

    transformers' own writer is not used: version 5 names a class and a list of tokens that version 4 cannot read.

    Raises:
        UserError: a tokenizer that has no such form, or that gives the mask token another id.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        kind = type(tokenizer).__name__
        raise UserError(f"{what}: expected a tokenizer that can be written as tokenizer.json, found a {kind}.")
    token = AddedToken(mask.name, special=True, normalized=False) if mask.is_added else mask.name
    tokenizer.add_special_tokens({"mask_token": token})
    if tokenizer.mask_token_id != mask.id:
        raise UserError(f"{what}: expected id {mask.id} for {mask.name}, found {tokenizer.mask_token_id}.")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    roles = {role: str(name) for role in _ROLES if (name := getattr(tokenizer, role, None)) is not None}
    write_json(folder / "special_tokens_map.json", roles)
    write_json(folder / "tokenizer_config.json", _config(tokenizer) | roles)


def _config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": min(int(tokenizer.model_max_length), 10**12),
        "tokenizer_class": "PreTrainedTokenizerFast",
    } | ({"chat_template": template} if template else {})
