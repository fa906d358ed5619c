"""The image tokens in a text model's vocabulary (MMaDA, arXiv:2505.15809).

Legend: N tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from stabledllm.errors import UserError

_NAMES = {"soi": "<|soi|>", "eoi": "<|eoi|>", "t2i": "<|t2i|>", "ipad": "[iPAD]"}
_PUBLISHED = {"soi": 126084, "eoi": 126085, "t2i": 126088, "ipad": 126093}
"""MMaDA's ids, among the tokens that LLaDA's tokenizer reserves and does not name."""


CAPTION_MARKS = 3
"""Number of tokens around a caption in a row: t2i, bos and eos."""


@dataclass(frozen=True)
class ImageTokens:
    """The ids of a model's image tokens. An image's code c is the token ``first + c``.

    A row of a caption with its image is ``ipad ... t2i bos caption eos soi image eoi``.
    """

    soi: int
    eoi: int
    t2i: int
    ipad: int
    bos: int
    eos: int
    first: int
    """The token of code 0: the number of tokens of the text tokenizer."""
    codebook_size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> ImageTokens:
        """The image tokens of a model and its tokenizer.

        The marks are looked up by name; where the tokenizer lacks one of the names, they are MMaDA's published ids.

        Raises:
            UserError: no codebook_size in the config, no marks, bos or eos in the tokenizer, or an embedding too small.
        """
        size = getattr(config, "codebook_size", None)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"model '{name}': expected codebook_size of at least 1 in config.json, found {size}.")
        ends = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
        for end, token in ends.items():
            if token is None:
                raise UserError(f"model '{name}': expected {end}_token in its tokenizer, found none.")
        first = len(tokenizer)
        if first + size > config.embedding_rows:
            raise UserError(
                f"model '{name}': expected an embedding of at least {first} text and {size} image tokens, "
                f"found {config.embedding_rows} rows."
            )
        return cls(**_marks(tokenizer, name), **ends, first=first, codebook_size=size)

    def row(self, caption: Sequence[int], image: Sequence[int], width: int) -> list[int]:
        """Token ids of a row; the caption with its marks is padded on its left to ``width``.

        Args:
            caption: token ids of the text alone. image: token ids, not codes.
        """
        text = [self.t2i, self.bos, *caption, self.eos]
        return [self.ipad] * (width - len(text)) + text + [self.soi, *image, self.eoi]

    def name_of(self, token: int) -> str | None:
        """``image`` for a token of an image, the name of a mark around one, None for any other token."""
        if self.first <= token < self.first + self.codebook_size:
            return "image"
        return next((name for mark, name in _NAMES.items() if getattr(self, mark) == token), None)

    def ids(self, codes: Tensor) -> Tensor:
        """Token ids of codes; shape kept.

        Raises:
            UserError: a code outside the codebook.
        """
        outside = codes[(codes < 0) | (codes >= self.codebook_size)]
        if outside.numel():
            raise UserError(f"picture: expected codes 0 to {self.codebook_size - 1}, found {int(outside[0])}.")
        return codes + self.first


def _marks(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in _NAMES.values()):
        return {mark: vocabulary[token] for mark, token in _NAMES.items()}
    added = tokenizer.added_tokens_decoder
    if all(token in added and added[token].special for token in _PUBLISHED.values()):
        return dict(_PUBLISHED)
    missing = next(token for token in _NAMES.values() if token not in vocabulary)
    raise UserError(
        f"model '{name}': expected a tokenizer with {' '.join(_NAMES.values())} or with MMaDA's reserved ids, "
        f"found none of these ids and no {missing}."
    )
