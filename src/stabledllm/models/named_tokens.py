"""The special tokens that a tokenizer's config names, looked up in its vocabulary."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json

_NAMES = ("bos_token", "eos_token", "mask_token", "sep_token", "cls_token")
"""Those that a row is made of; any token can pad."""


def check_named_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path, what: str) -> None:
    """Every special token stands in the tokenizer's files.

    transformers would give a new id to one that does not: a row of the embedding that was never trained.

    Raises:
        UserError: naming the first that is missing.
    """
    named = {name: str(token) for name in _NAMES if (token := getattr(tokenizer, name, None)) is not None}
    if not named or not (folder / "tokenizer.json").is_file():
        return
    stored = read_json(folder / "tokenizer.json")
    known = {added["content"] for added in stored.get("added_tokens") or ()} | _vocabulary(stored["model"])
    if (config := folder / "tokenizer_config.json").is_file():
        known |= {added["content"] for added in (read_json(config).get("added_tokens_decoder") or {}).values()}
    if (added := folder / "added_tokens.json").is_file():
        known |= set(read_json(added))
    for name, token in named.items():
        if token not in known:
            raise UserError(f"{what}: expected {name} in the vocabulary of its tokenizer, found no {token!r} there.")


def _vocabulary(model: dict) -> set[str]:
    """Tokens by their names, or in Unigram's list of pairs."""
    vocabulary = model.get("vocab") or ()
    return set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
