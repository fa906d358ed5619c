"""Captions and images as rows, in MMaDA's layout: ``[iPAD]... <|t2i|> bos caption eos <|soi|> N tokens <|eoi|>``.

Only the N image tokens are maskable. The caption's part is padded on its left to one width, with tokens that nothing
attends to. Source: MMaDA (arXiv:2505.15809), Show-o (arXiv:2408.12528).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from stabledllm.config.settings import DataSettings
from stabledllm.data.ids import refuse_ids
from stabledllm.data.images import image_tokenizer
from stabledllm.data.rows import Encoded
from stabledllm.errors import UserError
from stabledllm.images.codes import StoredCodes
from stabledllm.images.tokenizer import ImageTokenizer
from stabledllm.models.image_tokens import CAPTION_MARKS, ImageTokens


@dataclass(frozen=True)
class ImageRow:
    """A row of one caption and its image's codes, used like a :class:`~stabledllm.data.rows.TokenRow`.

    Its ids are made on request, so that many rows take little more memory than their codes.
    """

    caption: tuple[int, ...]
    """Ids of the caption's text alone."""
    codes: np.ndarray | StoredCodes
    """Shape (N,)."""
    tokens: ImageTokens
    width: int
    """Positions of the caption's part, with ``<|t2i|>``, bos, eos and padding."""
    origin: str = ""
    delimiter: list[int] = field(default_factory=list)
    syntax: list[int] = field(default_factory=list)
    tail = 1

    @property
    def hidden(self) -> int:
        """The number of leading padding tokens."""
        return self.width - len(self.caption) - CAPTION_MARKS

    @property
    def prompt_length(self) -> int:
        return self.width + 1

    @property
    def response_length(self) -> int:
        return len(self.codes)

    @property
    def input_ids(self) -> list[int]:
        image = self.tokens.ids(torch.from_numpy(np.asarray(self.codes).astype(np.int64))).tolist()
        return self.tokens.row(self.caption, image, self.width)

    def __len__(self) -> int:
        return self.width + len(self.codes) + 2

    def maskable_count(self, syrm: bool = False) -> int:
        """P, the number of the image's tokens."""
        return self.response_length

    def without_caption(self) -> ImageRow:
        """The row of the same image with an empty caption, for guidance; its length is the same."""
        return replace(self, caption=())


def encode_images(examples: Sequence[dict], tokenizer, settings: DataSettings) -> Encoded:
    """Encode examples as rows in MMaDA's layout; a caption that does not fit is dropped and counted, or refused.

    No caption is ever cut.

    Raises:
        UserError: a model without image tokens, another codebook, captions without images, or no row left.
    """
    tokens, image = image_tokens_of(tokenizer), settings.image
    expected = image_tokenizer(image.tokenizer)
    check_codebook(tokens, expected)
    if tokenizer.mask_token_id in range(tokens.first, tokens.first + tokens.codebook_size):
        raise UserError(
            f"model: expected a mask token that is no picture's code, found {tokenizer.mask_token_id} among the codes "
            f"{tokens.first} to {tokens.first + tokens.codebook_size - 1}."
        )
    rows, dropped = [], []
    for example in examples:
        if "codes" not in example:
            raise UserError(f"{example['origin']}: expected a picture beside the caption, found the caption alone.")
        caption = tokenizer.encode(example["caption"])
        refuse_ids(caption, tokenizer, example["origin"])
        row = ImageRow(tuple(caption), example["codes"], tokens, image.max_text, example["origin"])
        if row.hidden >= 0 and len(row) <= settings.max_len:
            rows.append(row)
        elif settings.over_length == "refuse":
            raise UserError(_too_long(row, settings))
        else:
            dropped.append(row.origin)
    if not rows:
        raise UserError(
            f"data: expected at least one picture whose caption fits image.max_text={image.max_text} and whose row "
            f"fits max_len={settings.max_len}, found none."
        )
    return Encoded(rows, dropped)


def _too_long(row: ImageRow, settings: DataSettings) -> str:
    if row.hidden < 0:
        most = settings.image.max_text - CAPTION_MARKS
        return (
            f"{row.origin}: expected a caption of at most {most} tokens (image.max_text={settings.image.max_text} with "
            f"three special ones), found {len(row.caption)}."
        )
    return f"{row.origin}: expected at most max_len={settings.max_len} tokens, found {len(row)}."


def image_tokens_of(tokenizer) -> ImageTokens:
    """The image tokens of a model's tokenizer.

    Raises:
        UserError: it has none.
    """
    tokens = getattr(tokenizer, "image_tokens", None)
    if tokens is None:
        raise UserError("model: expected MMaDA, which has image tokens, to work on pictures, found another model.")
    return tokens


def check_codebook(tokens: ImageTokens, tokenizer: ImageTokenizer) -> None:
    """Refuse an image tokenizer whose codebook is not of the model's size."""
    if tokens.codebook_size != tokenizer.codebook_size:
        raise UserError(
            f"key 'data.image.tokenizer': expected a codebook of {tokens.codebook_size}, as the model's, found "
            f"{tokenizer.codebook_size} in '{tokenizer.name}'."
        )
