"""Cropping and scaling an image to the side at which codes are made."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from stabledllm.errors import UserError

Fit = Literal["crop", "refuse"]


def fit_image(image: np.ndarray, side: int, how: Fit, where: str = "picture") -> np.ndarray:
    """The image at the given side, uint8 (side, side, 3).

    Args:
        image: uint8, shape (H, W, 3).
        how: ``crop`` scales the shorter side to ``side`` (bicubic) and cuts out the centre, as MMaDA prepares
            images, but never enlarges; ``refuse`` accepts only an image of that size.
        where: names the image in an error.

    Raises:
        UserError: an image of another size, or one that is too small to crop.
    """
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    found = f"found {width} x {height}"
    if how == "refuse":
        raise UserError(f"{where}: expected a picture of {side} x {side} pixels, {found}.")
    if min(height, width) < side:
        raise UserError(f"{where}: expected a picture of at least {side} x {side} pixels, {found}.")
    # Rounded as in torchvision: down for the longer side, to the nearest for the margins.
    height, width = (int(side * length / min(height, width)) for length in (height, width))
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return scaled[top : top + side, left : left + side].copy()
