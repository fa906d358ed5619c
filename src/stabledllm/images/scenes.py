"""Small images drawn from captions such as "three red circles above a blue square". NumPy only.

A scene is a function of (seed, split, index). A caption's split is a hash of its text, so that no caption is in two
splits. Legend: S side of the image in pixels.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

import numpy as np

from stabledllm.errors import UserError, did_you_mean

SIDE = 32
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (240, 200, 40)}
BACKGROUND = (255, 255, 255)
SHAPES = ("circle", "square", "triangle")
COUNTS = ("a", "two", "three")
RELATIONS = ("above", "below", "left of", "right of")
_RADIUS = 4
"""Half of an object's side."""
LEVELS = {"easy": 2, "hard": 3}
"""The most objects of a group, by level."""
_SPLIT_OF_BUCKET = ("test", "validation") + ("train",) * 8


@dataclass(frozen=True)
class Group:
    """A group of ``count`` objects (1 to 3) of one colour and shape."""

    count: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Scene:
    """A scene of one group, or of two and the relation of the first to the second; ``str`` gives the caption."""

    first: Group
    relation: str | None = None
    second: Group | None = None

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}" if self.second else str(self.first)

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """The scene of a caption.

        Raises:
            UserError: a caption that describes no such scene.
        """
        group = rf"({'|'.join(COUNTS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(s?)"
        match = re.fullmatch(rf"{group}(?: ({'|'.join(RELATIONS)}) {group})?", caption.strip())
        if match:
            words = match.groups()
            first, second = (_group(words[i : i + 4]) for i in (0, 5))
            scene = cls(first, words[4], second)
            if str(scene) == caption.strip():
                return scene
        raise UserError(f"caption '{caption}': expected one such as 'three red circles above a blue square'.")


def _group(words: tuple[str | None, ...]) -> Group | None:
    count, colour, shape, _ = words
    return Group(COUNTS.index(count) + 1, colour, shape) if count else None


def split_of(caption: str) -> str:
    """The split that a caption belongs to, by its text alone."""
    return _SPLIT_OF_BUCKET[hashlib.sha256(caption.encode()).digest()[0] % 10]


def most_objects(level: str) -> int:
    """The most objects of a group on a level.

    Raises:
        UserError: no such level.
    """
    if level not in LEVELS:
        raise UserError(f"scenes: unknown level '{level}'{did_you_mean(level, LEVELS)}.")
    return LEVELS[level]


def scene(split: str, seed: int, index: int, level: str = "hard") -> Scene:
    """The scene of number ``index`` in a split; the two groups of a scene differ in colour."""
    most = most_objects(level)
    rng = random.Random(f"scene/{seed}/{split}/{index}")
    while True:
        colours = rng.sample(list(COLOURS), 2)
        groups = [Group(rng.randint(1, most), colour, rng.choice(SHAPES)) for colour in colours]
        single = rng.random() < 0.25
        drawn = Scene(groups[0]) if single else Scene(groups[0], rng.choice(RELATIONS), groups[1])
        if split_of(str(drawn)) == split:
            return drawn


def draw(scene: Scene, seed: int) -> np.ndarray:
    """An image of the scene, uint8, shape (S, S, 3); the seed moves its objects by a pixel."""
    rng = random.Random(f"draw/{seed}/{scene}")
    image = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    near, far = SIDE // 4, SIDE - SIDE // 4
    places = {
        None: (SIDE // 2, None, False),
        "above": (near, far, False),
        "below": (far, near, False),
        "left of": (near, far, True),
        "right of": (far, near, True),
    }
    first, second, upright = places[scene.relation]
    for group, across in ((scene.first, first), (scene.second, second)):
        if group is None:
            continue
        gap = SIDE / group.count
        for i in range(group.count):
            along = round((i + 0.5) * gap)
            y, x = (along, across) if upright else (across, along)
            _stamp(image, group, y + rng.choice((-1, 0)), x + rng.choice((-1, 0)))
    return image


def _stamp(image: np.ndarray, group: Group, y: int, x: int) -> None:
    """Draw one object, its centre at the corner between pixels (y - 1, x - 1) and (y, x)."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    down, right = rows - y + 0.5, columns - x + 0.5
    inside = {
        "circle": down**2 + right**2 <= _RADIUS**2,
        "square": (abs(down) < _RADIUS) & (abs(right) < _RADIUS),
        "triangle": (abs(down) < _RADIUS) & (abs(right) <= (down + _RADIUS) / 2),
    }
    image[inside[group.shape]] = COLOURS[group.colour]
