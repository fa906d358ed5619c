"""Contact sheets: images in a grid with their captions, marked right or wrong; and writing of PNG files.

Legend: S side of an image in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stabledllm.errors import UserError
from stabledllm.runtime.files import write_bytes

_CELL = 160
"""Least number of pixels of an image's side, after enlarging by a whole factor."""
_MARGIN, _FRAME, _LINES = 14, 4, 6
_PAPER, _INK, _EDGE = (250, 250, 250), (40, 40, 40), (205, 205, 205)
_RIGHT, _WRONG = (34, 139, 60), (200, 40, 40)


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    marks: Sequence[bool | None] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """A sheet of images from left to right and top to bottom, every pixel enlarged to ``scale`` x ``scale`` pixels.

    Captions stand below the images, on at most 6 lines.

    Args:
        images: uint8, shape (S, S, 3), all of one side.
        columns: number of columns; by default about as many as rows.
        marks: True (green frame, tick), False (red frame, cross) or None (neither) for each image.
        scale: by default the smallest with which a side has at least 160 pixels.

    Raises:
        UserError: no image, one of another dtype or size, or a wrong number of captions or marks.
    """
    n, side = len(images), _side(images)
    marks = [None] * n if marks is None else marks
    for name, values in (("captions", captions), ("marks", marks)):
        if len(values) != n:
            raise UserError(f"contact sheet: expected {n} {name}, one a picture, found {len(values)}.")
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise UserError(f"contact sheet: expected {name} of at least 1, found {value}.")
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    scale = scale or math.ceil(_CELL / side)
    cell = side * scale
    font = ImageFont.load_default(size=min(max(cell // 12, 13), 28))
    texts = [
        _wrapped(text, font, cell - (_mark_width(font) if mark is not None else 0))
        for text, mark in zip(captions, marks, strict=True)
    ]
    tops, height = _layout(texts, columns, cell, font)
    sheet = Image.new("RGB", (_MARGIN + columns * (cell + _MARGIN), height), _PAPER)
    for place, (image, text, mark) in enumerate(zip(images, texts, marks, strict=True)):
        corner = (_MARGIN + place % columns * (cell + _MARGIN), tops[place // columns])
        sheet.paste(Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST), corner)
        _annotate(ImageDraw.Draw(sheet), corner, cell, text, mark, font)
    return sheet


def save_png(path: str | Path, image: Image.Image | np.ndarray) -> None:
    """Write a PNG file under a temporary name, flush to disk, rename: a kill leaves the old file or the new one.

    Raises:
        UserError: an array that is no image.
    """
    path = Path(path)
    if isinstance(image, np.ndarray):
        _check(image, str(path))
        image = Image.fromarray(image)
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def _side(images: Sequence[np.ndarray]) -> int:
    if not len(images):
        raise UserError("contact sheet: expected at least one picture, found none.")
    for place, image in enumerate(images):
        _check(image, f"contact sheet: picture {place}")
        if image.shape != (len(images[0]), len(images[0]), 3):
            side = len(images[0])
            raise UserError(f"contact sheet: picture {place}: expected shape ({side}, {side}, 3), found {image.shape}.")
    return len(images[0])


def _check(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{where}: expected uint8 of shape (S, S, 3), found {image.dtype} of shape {image.shape}.")


def _layout(texts: list[list[str]], columns: int, cell: int, font) -> tuple[list[int], int]:
    """The upper edge of the images of each row of the grid, and the sheet's height."""
    tops, y = [], _MARGIN
    for start in range(0, len(texts), columns):
        tops.append(y)
        lines = max(len(text) for text in texts[start : start + columns])
        y += cell + _FRAME + lines * _line_height(font) + _MARGIN
    return tops, y


def _wrapped(text: str, font, width: int) -> list[str]:
    """Lines no wider than ``width`` pixels; words that are wider by themselves are broken."""
    lines = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][:-3] + "..."]
    return lines


def _annotate(pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, text: list[str], mark, font) -> None:
    """Draw the frame around an image, and the tick or cross and the caption below it."""
    x, y = corner
    thickness = 1 if mark is None else _FRAME
    colour = _EDGE if mark is None else _RIGHT if mark else _WRONG
    for i in range(1, thickness + 1):
        pen.rectangle((x - i, y - i, x + cell - 1 + i, y + cell - 1 + i), outline=colour)
    height, y = _line_height(font), y + cell + _FRAME
    if mark is not None:
        size = int(font.size * 0.7)
        _draw_mark(pen, x, y + (height - size) // 2, size, bool(mark), colour)
        x += _mark_width(font)
    for i, line in enumerate(text):
        pen.text((x, y + i * height), line, fill=_INK, font=font)


def _draw_mark(pen: ImageDraw.ImageDraw, x: int, y: int, size: int, right: bool, colour: tuple[int, int, int]) -> None:
    width = max(2, size // 5)
    if right:
        pen.line([(x, y + size // 2), (x + size // 3, y + size), (x + size, y)], fill=colour, width=width)
        return
    pen.line([(x, y), (x + size, y + size)], fill=colour, width=width)
    pen.line([(x, y + size), (x + size, y)], fill=colour, width=width)


def _mark_width(font) -> int:
    return int(font.size * 1.1)


def _line_height(font) -> int:
    return int(font.size * 1.3)
