"""The token that a converted model reads as a mask: one that its tokenizer has and never writes, or a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError, did_you_mean

CHOICES = ("auto", "spare", "special", "new")
_NEW_NAMES = ("<|mask|>", "<|MASK|>", "<|mdm_mask|>")
_RESERVED = re.compile("reserved|unused|extra", re.IGNORECASE)
"""Names that tokenizers give to special tokens that no text was trained with."""


@dataclass(frozen=True)
class MaskToken:
    """A mask token. ``kind``: ``own``, ``special`` (there already), ``spare`` or ``new`` (of the embedding's rows)."""

    name: str
    id: int
    kind: str

    @property
    def is_added(self) -> bool:
        """Whether the tokenizer does not know it yet."""
        return self.kind in ("spare", "new")

    def __str__(self) -> str:
        kinds = {
            "own": "the tokenizer's own",
            "special": "a special token that nothing uses",
            "spare": "a spare row of the embedding",
            "new": "a new row of the embedding",
        }
        return f"{self.name} (id {self.id}), {kinds[self.kind]}"


def choose_mask(
    tokenizer: PreTrainedTokenizerBase, rows: int, wanted: str, ends: Iterable[int], what: str
) -> MaskToken:
    """The mask token of a converted model.

    Args:
        rows: of the embedding. ends: ids of tokens that the model's config names, which are in use.
        wanted: ``spare``: the first row of the embedding behind the tokenizer's ids. ``special``: a special token
            that no role, template or config names; one called reserved or unused, else the last. ``new``: a row more.
            ``auto``: the tokenizer's own mask token, else spare, else special. Or a special token's name.

    Raises:
        UserError: there is no such token, or it is in use.
    """
    unused = _unused_special(tokenizer, ends)
    if wanted == "auto" and tokenizer.mask_token_id is not None:
        return MaskToken(str(tokenizer.mask_token), tokenizer.mask_token_id, "own")
    following = _next_id(tokenizer)
    if wanted in ("auto", "spare") and following < rows:
        return MaskToken(_new_name(tokenizer, what), following, "spare")
    if wanted in ("auto", "special") and unused:
        reserved = [name for name in unused if _RESERVED.search(name)]
        name = min(reserved, key=unused.get) if reserved else max(unused, key=unused.get)
        return MaskToken(name, unused[name], "special")
    if wanted == "new":
        if following < rows:
            raise UserError(
                f"{what}: expected no spare row of the embedding for a new mask token, found {rows - following}; take "
                f"--mask-token spare."
            )
        return MaskToken(_new_name(tokenizer, what), following, "new")
    if wanted in CHOICES:
        other = "spare takes a spare row of the embedding" if following < rows else "new adds a row"
        raise UserError(
            f"{what}: expected a free token for the mask, found no {_MISSING[wanted]}; --mask-token {other}."
        )
    return _named(tokenizer, wanted, unused, what)


_MISSING = {
    "auto": "spare row of the embedding and no special token that nothing uses",
    "spare": "spare row of the embedding",
    "special": "special token that nothing uses",
}


def _named(tokenizer: PreTrainedTokenizerBase, name: str, unused: dict[str, int], what: str) -> MaskToken:
    if name in unused:
        return MaskToken(name, unused[name], "special")
    known = name in tokenizer.get_vocab()
    found = f"'{name}', which is in use or part of texts" if known else f"'{name}'"
    raise UserError(
        f"{what}: expected --mask-token {', '.join(CHOICES)} or a special token that nothing uses, found {found}"
        f"{did_you_mean(name, [*CHOICES, *unused], most=0)}."
    )


def _unused_special(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> dict[str, int]:
    """The special tokens that play no role and that the chat template does not name, with their ids."""
    roles = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
    used = {getattr(tokenizer, role) for role in roles} | set(ends)
    template = str(tokenizer.chat_template)
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {name: i for i, name in special.items() if i not in used and name not in template}


def _next_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _new_name(tokenizer: PreTrainedTokenizerBase, what: str) -> str:
    known = tokenizer.get_vocab()
    for name in _NEW_NAMES:
        if name not in known:
            return name
    raise UserError(f"{what}: expected a tokenizer without {', '.join(_NEW_NAMES)}, found all; name one of them.")
