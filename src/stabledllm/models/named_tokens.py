"""The special tokens that a tokenizer's config names, looked up in its vocabulary; which of them masks."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json

_NAMES = ("bos_token", "eos_token", "mask_token", "sep_token", "cls_token")
"""The special tokens that rows contain; padding is left out, as any token can pad."""


def check_named_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path, what: str) -> None:
    """Check that every special token is in the tokenizer's files.

    transformers would give a new id to one that is not: a row of the embedding that was never trained.

    Raises:
        UserError: naming the first that is missing.
    """
    named = {name: str(token) for name in _NAMES if (token := getattr(tokenizer, name, None)) is not None}
    if not named or not (folder / "tokenizer.json").is_file():
        return
    stored = read_json(folder / "tokenizer.json")
    vocabulary = {added["content"] for added in stored.get("added_tokens") or ()} | _vocabulary(stored["model"])
    if (config := folder / "tokenizer_config.json").is_file():
        vocabulary |= {added["content"] for added in (read_json(config).get("added_tokens_decoder") or {}).values()}
    if (added := folder / "added_tokens.json").is_file():
        vocabulary |= set(read_json(added))
    for name, token in named.items():
        if token not in vocabulary:
            raise UserError(f"{what}: expected {name} in the vocabulary of its tokenizer, found no {token!r} there.")


def _vocabulary(model: dict) -> set[str]:
    """The tokens of a model's vocabulary, which is a map by name or Unigram's list of pairs."""
    vocabulary = model.get("vocab") or ()
    return set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}


def mask_of(
    tokenizer: PreTrainedTokenizerBase, configured: int | None, vocab_size: int, what: str, *, needed: bool
) -> int | None:
    """The mask token's id: the configured one, else the tokenizer's own.

    Raises:
        UserError: none although one is needed, one that is no row of the embedding, or two that differ.
    """
    own = tokenizer.mask_token_id
    mask = own if configured is None else configured
    if mask is None and needed:
        raise UserError(
            f"{what}: expected mask_token_id in config.json or a mask token in the tokenizer, found neither."
        )
    if mask is not None and (type(mask) is not int or not 0 <= mask < vocab_size):
        raise UserError(
            f"{what}: expected mask_token_id to be a token below the embedding's {vocab_size} rows, found {mask!r}."
        )
    if own is not None and own != mask:
        raise UserError(f"{what}: expected the tokenizer's mask token {own} as mask_token_id, found {mask}.")
    return mask


def refuse_text_as_mask(tokenizer: PreTrainedTokenizerBase, mask: int, what: str) -> None:
    """Refuse a token of texts as the mask token: texts would lose it.

    Raises:
        UserError: the id is that of a token that was not added to the vocabulary.
    """
    token = tokenizer.convert_ids_to_tokens(mask)
    if token is not None and mask not in tokenizer.added_tokens_decoder:
        raise UserError(
            f"{what}: expected mask_token_id to be a token that no text has (an added one, or a row of the embedding "
            f"without one), found {mask}, which is {token!r}."
        )
