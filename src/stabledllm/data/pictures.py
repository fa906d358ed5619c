"""Captions and pictures as rows, in MMaDA's layout: ``[iPAD]... <|t2i|> bos caption eos <|soi|> N tokens <|eoi|>``.

The N image tokens are the maskable ones. The caption's part is padded on its left to one width, with tokens that nobody
attends to. Source: MMaDA (arXiv:2505.15809), Show-o (arXiv:2408.12528).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from stabledllm.config.settings import DataSettings, ImageSettings
from stabledllm.data.rows import Encoded
from stabledllm.errors import UserError
from stabledllm.images.cache import cached_codes
from stabledllm.images.codes import Codes, StoredCodes
from stabledllm.images.sources import PICTURE_KINDS, parse, pictures
from stabledllm.images.tokenizer import ImageTokenizer, load_image_tokenizer
from stabledllm.models.image_choices import image_choices
from stabledllm.models.image_tokens import ImageTokens

CAPTIONS_ONLY = "captions"
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class PictureRow:
    """One caption and its picture's codes, in the place of a :class:`~stabledllm.data.rows.TokenRow`.

    Its ids are put together when they are asked for, so that many rows take little more memory than their codes.
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
        """Leading padding."""
        return self.width - len(self.caption) - 3

    @property
    def prompt_length(self) -> int:
        return self.width + 1

    @property
    def response_length(self) -> int:
        return len(self.codes)

    @property
    def input_ids(self) -> list[int]:
        tokens = self.tokens
        text = [tokens.t2i, tokens.bos, *self.caption, tokens.eos]
        image = (np.asarray(self.codes) + tokens.first).tolist()
        return [tokens.ipad] * self.hidden + text + [tokens.soi, *image, tokens.eoi]

    def __len__(self) -> int:
        return self.width + len(self.codes) + 2

    def maskable_count(self, syrm: bool = False) -> int:
        """P, the image's tokens."""
        return self.response_length

    def without_caption(self) -> PictureRow:
        """The same picture with an empty caption, as guidance needs it; the same length."""
        return replace(self, caption=())


def is_picture(example: dict) -> bool:
    """Whether an example is a captioned picture, or a caption to draw."""
    return "caption" in example


def are_pictures(spec: str) -> bool:
    """Whether a data specification names pictures or captions."""
    return spec.partition(":")[0] in PICTURE_KINDS


def settled(settings: Settings) -> Settings:
    """The same settings with what the model's pictures are made by, wherever they leave it open.

    Settings on data without pictures are left as they are.

    Raises:
        UserError: a model that does not say which tokenizer or which width, or a side that the tokenizer cannot divide.
    """
    data = settings.data
    if not any(are_pictures(spec) for spec in (data.train, data.validation, data.test) if spec):
        return settings
    image = settled_image(data.image, settings.model)
    return settings.model_copy(update={"data": data.model_copy(update={"image": image})})


def settled_image(image: ImageSettings, model: str) -> ImageSettings:
    """As :func:`settled`, of the group alone."""
    known = image_choices(model)
    open_ = {name: value for name, value in known.items() if getattr(image, name) is None}
    found = image.model_copy(update=open_)
    for name in ("tokenizer", "max_text"):
        if getattr(found, name) is None:
            raise UserError(
                f"key 'data.image.{name}': expected a value, since config.json of model '{model}' has none, found none."
            )
    if found.side is None:
        found = found.model_copy(update={"side": image_tokenizer(found.tokenizer).side})
    tokens_of(found)
    return found


@lru_cache(maxsize=4)
def image_tokenizer(name: str) -> ImageTokenizer:
    """The tokenizer of pictures, loaded once, on the accelerator where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_image_tokenizer(name, device)


def tokens_of(settings: ImageSettings) -> int:
    """N, the image tokens of a picture, of settled settings.

    Raises:
        UserError: a side that the tokenizer cannot divide.
    """
    tokenizer, side = image_tokenizer(settings.tokenizer), settings.side
    if side % tokenizer.downsampling:
        raise UserError(
            f"key 'data.image.side': expected a multiple of {tokenizer.downsampling}, by which '{tokenizer.name}' "
            f"downsamples, found {side}."
        )
    return (side // tokenizer.downsampling) ** 2


def load_pictures(
    spec: str,
    *,
    split: str,
    n: int,
    seed: int,
    settings: ImageSettings,
    codes: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict]:
    """``{"caption", "origin", "codes"}`` of each picture; its codes come from the disk, where they are made once.

    Args:
        n: pictures that are wanted; 0: whatever there is. codes: False for captions alone: no picture is read.
        note: gets one line on the bad pictures that were dropped, if any.

    Raises:
        UserError: whatever is wrong with a picture, a caption, the cache or the tokenizer.
    """
    kind, _ = parse(spec)
    if kind == CAPTIONS_ONLY or (not codes and kind != "codes"):
        read = pictures(spec, split=split, rows=n or None, seed=seed)
        return [{"caption": picture.caption, "origin": picture.origin} for picture in read]
    found = encode(spec, split=split, n=n, seed=seed, settings=settings)
    if told := dropped_note(found):
        note(f"{split}: {spec}: {told}")
    return _examples(found, codes)


def encode(spec: str, *, split: str, n: int, seed: int, settings: ImageSettings) -> Codes:
    """Codes of the first ``n`` pictures, or of all: from the disk, and what is not there yet is made and put there."""
    with tqdm(total=n or None, desc=f"codes of {spec} {split}", unit="picture", leave=False) as bar:
        return cached_codes(
            spec,
            image_tokenizer(settings.tokenizer),
            folder=Path(settings.cache),
            split=split,
            rows=n or None,
            seed=seed,
            side=settings.side,
            fit=settings.fit,
            on_bad=settings.on_bad,
            progress=bar.update,
        )


def dropped_note(found: Codes) -> str:
    """How many bad pictures were left out, and why the first was; empty where none was."""
    if not found.dropped:
        return ""
    return f"dropped {len(found.dropped)} bad pictures (the first: {found.dropped[0].reason.rstrip('.')})"


def _examples(found: Codes, codes: bool) -> list[dict]:
    out = [{"caption": text, "origin": origin} for text, origin in zip(found.captions, found.origins, strict=True)]
    return [example | {"codes": found.codes.later(i)} for i, example in enumerate(out)] if codes else out


def encode_pictures(examples: Sequence[dict], tokenizer, settings: DataSettings) -> Encoded:
    """Rows in MMaDA's layout; a caption that does not fit its part is dropped and counted, or refused: never cut.

    Raises:
        UserError: a model without image tokens, another codebook, captions without pictures, or no row left.
    """
    tokens, image = image_tokens_of(tokenizer), settings.image
    expected = image_tokenizer(image.tokenizer)
    check_codebook(tokens, expected)
    rows, dropped = [], []
    for example in examples:
        if "codes" not in example:
            raise UserError(f"{example['origin']}: expected a picture beside the caption, found the caption alone.")
        row = PictureRow(
            tuple(tokenizer.encode(example["caption"])), example["codes"], tokens, image.max_text, example["origin"]
        )
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


def _too_long(row: PictureRow, settings: DataSettings) -> str:
    if row.hidden < 0:
        most = settings.image.max_text - 3
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
    """Refuse a tokenizer of pictures whose codes are not those that the model knows."""
    if tokens.codebook_size != tokenizer.codebook_size:
        raise UserError(
            f"key 'data.image.tokenizer': expected a codebook of {tokens.codebook_size}, as the model's, found "
            f"{tokenizer.codebook_size} in '{tokenizer.name}'."
        )
