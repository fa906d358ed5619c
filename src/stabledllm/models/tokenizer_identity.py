"""The identity of a tokenizer: everything in it that decides which ids a text gets."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase


def identity_of(tokenizer: PreTrainedTokenizerBase, choices: list) -> str | None:
    """A digest of transformers' tokenizer; None for one whose code is not transformers' own, or that hides its state.

    Args:
        choices: what is decided beside it, such as the end token and the model's vocabulary size.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    state = {
        "class": type(tokenizer).__name__,
        "backend": backend.to_str(),
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "choices": choices,
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
