"""Whether an image shows what its caption says: colours, shapes, counts and the relation, read off its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from stabledllm.errors import UserError
from stabledllm.images.scenes import BACKGROUND, COLOURS, Group, Scene

_LEAST = 9
"""Pixels of an object; smaller spots are taken for blur."""
_APART = 6.0
"""Pixels between centres from which one lies beside the other; drawn ones are 14 to 18 apart."""
_PALETTE = {"background": BACKGROUND} | COLOURS
_SIDES = range(6, 11)
"""Pixels of a bounding box's sides; drawn ones have 8. What is larger or smaller is a blot and has no shape."""
# Share of its bounding box that a shape fills, as scenes are drawn: 1, 52/64 and 32/56.
_SQUARE, _CIRCLE = 0.92, 0.68


@dataclass(frozen=True)
class Object:
    """One spot of one colour; its centre in pixels."""

    colour: str
    shape: str
    """``circle``, ``square``, ``triangle`` or ``blot``."""
    y: float
    x: float


@dataclass(frozen=True)
class Verdict:
    """What of a caption an image shows; each part is judged by itself."""

    colours: bool
    """The caption's colours and no others."""
    counts: bool
    """As many objects of each colour."""
    shapes: bool
    """No object of another shape than its colour's."""
    relation: bool
    """Every object of the first group on its side of every object of the second; true where there is one group."""

    @property
    def correct(self) -> bool:
        return self.colours and self.counts and self.shapes and self.relation


def read(image: np.ndarray) -> list[Object]:
    """The objects of an image, uint8, shape (S, S, 3): connected pixels nearest to one colour of the palette.

    Raises:
        UserError: an array of another kind.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"picture: expected uint8 of shape (S, S, 3), found {image.dtype} of shape {image.shape}.")
    palette = np.array(list(_PALETTE.values()), dtype=float)
    nearest = ((image[:, :, None].astype(float) - palette) ** 2).sum(-1).argmin(-1)
    found = []
    for index, colour in enumerate(_PALETTE):
        if colour == "background":
            continue
        spots, _ = ndimage.label(nearest == index)
        for number, box in enumerate(ndimage.find_objects(spots), start=1):
            spot = spots[box] == number
            if spot.sum() >= _LEAST:
                y, x = np.argwhere(spot).mean(0) + np.array([box[0].start, box[1].start])
                found.append(Object(colour, _shape(spot), float(y), float(x)))
    return found


def judge(image: np.ndarray, wanted: Scene) -> Verdict:
    """What of the scene the image shows."""
    objects = read(image)
    groups = [group for group in (wanted.first, wanted.second) if group]
    mine = [[o for o in objects if o.colour == group.colour] for group in groups]
    return Verdict(
        colours={o.colour for o in objects} == {group.colour for group in groups},
        counts=all(len(found) == group.count for found, group in zip(mine, groups, strict=True)),
        shapes=all(bool(found) and _of_shape(found, group) for found, group in zip(mine, groups, strict=True)),
        relation=wanted.relation is None or _on_side(*mine, wanted.relation),
    )


def _of_shape(found: list[Object], group: Group) -> bool:
    return all(o.shape == group.shape for o in found)


def _on_side(first: list[Object], second: list[Object], relation: str) -> bool:
    if not first or not second:
        return False
    if relation in ("below", "right of"):
        first, second = second, first
    axis = "y" if relation in ("above", "below") else "x"
    gap = min(getattr(o, axis) for o in second) - max(getattr(o, axis) for o in first)
    return gap > _APART


def _shape(spot: np.ndarray) -> str:
    if not all(side in _SIDES for side in spot.shape):
        return "blot"
    fill = spot.mean()
    return "square" if fill > _SQUARE else "circle" if fill > _CIRCLE else "triangle"
