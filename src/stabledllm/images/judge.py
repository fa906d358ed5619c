"""Judging whether an image of a scene shows its caption: colours, shapes, counts and the relation, from its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from stabledllm.errors import UserError
from stabledllm.images.scenes import BACKGROUND, COLOURS, Group, Scene

_LEAST = 9
"""Least number of pixels of an object; smaller spots count as blur."""
_APART = 6.0
"""Pixels between two centres beyond which one is beside the other; drawn ones are 14 to 18 apart."""
_PALETTE = {"background": BACKGROUND} | COLOURS
_SIDES = range(6, 11)
"""Sides in pixels of an object's bounding box; drawn ones have 8. Larger or smaller spots are blots without a shape."""
# Thresholds between the shares of their bounding boxes that drawn shapes fill: 1, 52/64 and 32/56.
_SQUARE, _CIRCLE = 0.92, 0.68


@dataclass(frozen=True)
class Object:
    """An object in an image: a spot of one colour, with its centre in pixels."""

    colour: str
    shape: str
    """``circle``, ``square``, ``triangle`` or ``blot``."""
    y: float
    x: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on an image: which parts of its caption it shows, each judged by itself."""

    colours: bool
    """It has the caption's colours and no others."""
    counts: bool
    """It has as many objects of each colour as the caption says."""
    shapes: bool
    """Every object has the shape that the caption gives its colour."""
    relation: bool
    """Every object of the first group is on its side of every object of the second; true if there is one group."""

    @property
    def correct(self) -> bool:
        return self.colours and self.counts and self.shapes and self.relation


def read(image: np.ndarray) -> list[Object]:
    """The objects of an image, uint8, shape (S, S, 3): connected pixels nearest to one colour of the palette.

    Raises:
        UserError: an array of another dtype or shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"picture: expected uint8 of shape (S, S, 3), found {image.dtype} of shape {image.shape}.")
    palette = np.array(list(_PALETTE.values()), dtype=float)
    nearest = ((image[:, :, None].astype(float) - palette) ** 2).sum(-1).argmin(-1)
    objects = []
    for index, colour in enumerate(_PALETTE):
        if colour == "background":
            continue
        spots, _ = ndimage.label(nearest == index)
        for number, box in enumerate(ndimage.find_objects(spots), start=1):
            spot = spots[box] == number
            if spot.sum() >= _LEAST:
                y, x = np.argwhere(spot).mean(0) + np.array([box[0].start, box[1].start])
                objects.append(Object(colour, _shape(spot), float(y), float(x)))
    return objects


def judge(image: np.ndarray, scene: Scene) -> Verdict:
    """Judge which parts of a scene an image shows."""
    objects = read(image)
    groups = [group for group in (scene.first, scene.second) if group]
    by_group = [[o for o in objects if o.colour == group.colour] for group in groups]
    return Verdict(
        colours={o.colour for o in objects} == {group.colour for group in groups},
        counts=all(len(same) == group.count for same, group in zip(by_group, groups, strict=True)),
        shapes=all(bool(same) and _of_shape(same, group) for same, group in zip(by_group, groups, strict=True)),
        relation=scene.relation is None or _on_side(*by_group, scene.relation),
    )


def _of_shape(objects: list[Object], group: Group) -> bool:
    return all(o.shape == group.shape for o in objects)


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
