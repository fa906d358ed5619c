"""The images that a specification names.

It is ``scenes[:LEVEL]``, ``text-to-image-2m[:PATH]``, ``images:PATH`` or ``captions:PATH``. The order never changes,
and nothing is decoded before it is asked for. A fifth kind, ``codes:FOLDER``, has codes and captions but no images
(:mod:`stabledllm.images.cache`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from stabledllm.errors import UserError, did_you_mean
from stabledllm.images import folders, hub, scenes, shards
from stabledllm.images.cache_record import record_of
from stabledllm.images.image import CaptionedImage, Flaw, Source
from stabledllm.images.kinds import IMAGE_KINDS

_WITHOUT_PATH = ("scenes", "text-to-image-2m")


class Scenes:
    """A source of endlessly many drawn scenes, other ones for every seed.

    Args:
        level: one of :data:`stabledllm.images.scenes.LEVELS`.
    """

    def __init__(self, level: str):
        scenes.most_objects(level)
        self.level = level

    splits = ("train", "validation", "test")
    seeded = True

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage]:
        return (_scene(split, seed, i, self.level) for i in itertools.count())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.level.encode())
        for i in range(8):
            scene = scenes.scene("train", 0, i, self.level)
            digest.update(str(scene).encode() + scenes.draw(scene, i).tobytes())
        return digest.hexdigest()

    def rows(self, split: str) -> int:
        return {"train": 4000, "validation": 256, "test": 128}[split]


def captioned_images(spec: str, *, split: str, rows: int | None, seed: int) -> Iterator[CaptionedImage]:
    """The first ``rows`` images that ``spec`` names, or all (of ``scenes``, which have no end: 4000, 256 or 128).

    Args:
        split: has an effect where the specification has splits of its own (:func:`own_splits`).
        seed: has an effect for ``scenes`` only.

    Raises:
        UserError: an unknown kind or split; a bad image or caption, with its file, line or member; no images.
    """
    source = source_of(spec)
    check_split(spec, source, split)
    limit = rows or source.rows(split)
    any_image = False
    for item in itertools.islice(source.items(split, seed), limit):
        if isinstance(item, Flaw):
            raise UserError(item.reason)
        any_image = True
        yield item
    if not any_image:
        raise no_images(spec, source, split)


def own_splits(spec: str) -> tuple[str, ...]:
    """The splits that a specification has by itself; none for data that are one split."""
    kind, _ = parse(spec)
    return () if kind == "codes" else source_of(spec).splits


def fingerprint(spec: str) -> str:
    """A hexadecimal digest of the data: names and sizes of images or shards, and the text of files with captions.

    Raises:
        UserError: there are no such data.
    """
    kind, where = parse(spec)
    if kind != "codes":
        return source_of(spec).fingerprint()
    return hashlib.sha256(repr(record_of(Path(where).expanduser())).encode()).hexdigest()


def source_of(spec: str) -> Source:
    """The source that a specification names; ``codes:FOLDER`` has none.

    Raises:
        UserError: an unknown kind, or a path that is missing or does not fit the kind.
    """
    kind, where = parse(spec)
    path = Path(where).expanduser()
    if kind == "scenes":
        return Scenes(where or "hard")
    if kind == "text-to-image-2m":
        return shards.Shards(path) if where else hub.HubShards()
    if kind == "images":
        return folders.of_images(path)
    if kind == "captions":
        return folders.Captions(path)
    raise UserError(f"data '{spec}': expected pictures, found codes without pictures.")


def parse(spec: str) -> tuple[str, str]:
    """The ``(kind, path)`` of a specification; the path is empty where there is none."""
    kind, colon, where = spec.partition(":")
    if kind not in IMAGE_KINDS:
        raise UserError(f"data '{spec}': unknown kind of pictures '{kind}'{did_you_mean(kind, IMAGE_KINDS)}.")
    if not where and (colon or kind not in _WITHOUT_PATH):
        raise UserError(f"data '{spec}': expected {kind}:PATH with local files, found no path.")
    return kind, where


def check_split(spec: str, source: Source, split: str) -> None:
    """Refuse a split that the source does not have.

    Raises:
        UserError: naming the split.
    """
    if source.splits and split not in source.splits:
        raise UserError(f"data '{spec}': expected a split of {', '.join(source.splits)}, found '{split}'.")


def no_images(spec: str, source: Source, split: str) -> UserError:
    """The error about a source without images."""
    of = f" of split '{split}'" if source.splits else ""
    return UserError(f"data '{spec}': expected at least one picture{of}, found none.")


def _scene(split: str, seed: int, i: int, level: str) -> CaptionedImage:
    scene = scenes.scene(split, seed, i, level)
    return CaptionedImage(str(scene), f"scenes {split} row {i}", lambda: scenes.draw(scene, seed + i))
