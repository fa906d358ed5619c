"""A picture brought to the side that codes are made at."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from stabledllm.errors import UserError

Fit = Literal["crop", "refuse"]


def fit_picture(picture: np.ndarray, side: int, how: Fit, where: str = "picture") -> np.ndarray:
    """The picture as uint8 (side, side, 3).

    Args:
        picture: uint8, shape (H, W, 3).
        how: ``crop`` scales the shorter side to ``side`` (bicubic) and cuts out the centre, as MMaDA prepares
            pictures, but never enlarges; ``refuse`` takes a picture of that size only.
        where: names the picture in an error.

    Raises:
        UserError: a picture of another size, or one that is too small to crop.
    """
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    found = f"found {width} x {height}"
    if how == "refuse":
        raise UserError(f"{where}: expected a picture of {side} x {side} pixels, {found}.")
    if min(height, width) < side:
        raise UserError(f"{where}: expected a picture of at least {side} x {side} pixels, {found}.")
    # Rounded as torchvision rounds: down for the longer side, to the nearest for the margins.
    height, width = (int(side * length / min(height, width)) for length in (height, width))
    scaled = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return scaled[top : top + side, left : left + side].copy()
