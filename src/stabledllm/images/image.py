"""Captioned images as a source gives them, and decoding of an image's bytes into an array."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from stabledllm.errors import UserError
from stabledllm.tasks.text_files import decoded

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_DEEP = "I;16"
"""The beginning of the names of Pillow's modes with 16 bits of grey."""
_BACKGROUND = "white"


@dataclass(frozen=True)
class CaptionedImage:
    """A caption and its image, which is decoded only when ``read`` is called."""

    caption: str
    origin: str
    """Unique within its source and the same wherever the source lies: ``FILE``, ``FILE:LINE``, ``SHARD:KEY``,
    ``scenes SPLIT row I``; paths are relative to the source."""
    read: Callable[[], np.ndarray]
    """uint8 RGB, shape (H, W, 3); raises UserError where the image is broken."""


@dataclass(frozen=True)
class Flaw:
    """A bad image or caption, which a source gives in place of a :class:`CaptionedImage`."""

    origin: str
    reason: str
    """The message of the error."""


class Source(Protocol):
    """A source of captioned images of one kind, in one place."""

    splits: tuple[str, ...]
    """The splits that the source itself has; none for data that are one split."""
    seeded: bool
    """Whether a seed changes the images."""

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        """All images of a split, in an order that never changes.

        Raises:
            UserError: anything that keeps the rest of the source from being read.
        """
        ...

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when the data change. No image is read for it."""
        ...

    def rows(self, split: str) -> int | None:
        """The default number of images of a split; None for all there are."""
        ...


def read_file(path: Path, where: str | None = None, offset: int = 0, size: int = -1) -> np.ndarray:
    """The image in a file, or in ``size`` bytes of it from ``offset``, decoded by :func:`decode`."""
    where = where or str(path)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise UserError(f"{where}: expected a file that can be read, found: {error.strerror}.") from None
    return decode(data, where)


def decode(data: bytes, where: str) -> np.ndarray:
    """Decode an image to uint8 RGB of shape (H, W, 3), turned as its EXIF says; transparent parts are put on white.

    Raises:
        UserError: no JPEG, PNG or WebP, one that is cut short, or one too large to be safe to decode.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return np.array(_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # each way in which a file can be broken has its own type
        raise UserError(f"{where}: expected a JPEG, PNG or WebP picture, found {_reason(error, data)}.") from None


def caption_text(content: bytes, where: str) -> str:
    """The caption in a text file, without white space around it.

    Raises:
        UserError: it is empty or not UTF-8.
    """
    caption = decoded(content, where, what="a caption in UTF-8").strip()
    if not caption:
        raise UserError(f"{where}: expected a caption, found an empty one.")
    return caption


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(_DEEP):  # conversion would clip values in [0, 65535] at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image)
    return image.convert("RGB")


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{len(data)} bytes that are none" if data else "an empty file"
    return f"a broken one ({' '.join(str(error).split()).rstrip('.') or type(error).__name__})"
