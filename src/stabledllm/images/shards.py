"""text-to-image-2M in WebDataset shards: tar archives in which ``KEY.jpg`` and ``KEY.json`` follow each other.

A shard is read header by header; only captions are read on the way, and an image's bytes when it is asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stabledllm.errors import UserError
from stabledllm.images.image import SUFFIXES, CaptionedImage, Flaw, caption_text, read_file
from stabledllm.tasks.files import parse_object, text_field
from stabledllm.tasks.text_files import decoded, files_below

_CAPTIONS = (".json", ".txt")
_BLOCK = 512
_BUCKETS = 1000
_SPLIT_OF_BUCKET = {0: "test", 1: "validation"}


def split_of(caption: str) -> str:
    """The split a caption belongs to, by its text alone: of a thousand, one is for test and one for validation."""
    bucket = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") % _BUCKETS
    return _SPLIT_OF_BUCKET.get(bucket, "train")


class Shards:
    """A source of the images in a .tar, or in the .tar files of a folder in the order of their names."""

    splits = ("train", "validation", "test")
    seeded = False

    def __init__(self, path: Path):
        self.paths = _tars(path)

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        return of_split(self.paths.items(), split)

    def fingerprint(self) -> str:
        sizes = [(name, path.stat().st_size) for name, path in self.paths.items()]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def rows(self, split: str) -> None:
        return None


def of_split(shards: Iterable[tuple[str, Path]], split: str) -> Iterator[CaptionedImage | Flaw]:
    """The images of a split in shards ``(name, file)``. An image without a caption belongs to every split."""
    for name, path in shards:
        for item in read_shard(name, path):
            if isinstance(item, Flaw) or split_of(item.caption) == split:
                yield item


@dataclass
class _Sample:
    """The images and captions of one key."""

    key: str
    images: list[tarfile.TarInfo] = field(default_factory=list)
    captions: dict[str, bytes] = field(default_factory=dict)
    """Contents by suffix, ``.json`` and ``.txt``."""


def read_shard(name: str, path: Path) -> Iterator[CaptionedImage | Flaw]:
    """The images of a shard, in its order; memory does not grow with the shard, except for the keys.

    A member's key is its name up to the first dot of its last part, as in WebDataset.

    Raises:
        UserError: no tar archive, or one that ends too early.
    """
    seen: set[str] = set()
    for key, members in itertools.groupby(_members(path), key=lambda pair: _key(pair[0])[0]):
        sample = _Sample(key)
        for member, content in members:
            suffix = _key(member)[1]
            if content is None:
                sample.images.append(member)
            else:
                sample.captions[suffix] = content
        yield _repeated(name, path, key) if key in seen else _item(name, path, sample)
        seen.add(key)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The members of a shard that are images, with None, or captions, with their content."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would hold every member in memory
                suffix = _key(member)[1]
                if member.isfile() and suffix in SUFFIXES:
                    yield member, None
                elif member.isfile() and suffix in _CAPTIONS:
                    yield member, _content(tar, member)
            _check_end(tar)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: expected a whole, uncompressed tar archive, found a broken one ({error}).") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member).read()
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that the archive ends in a block of zeros; tarfile also takes a broken header for the end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"no member and no end of the archive at byte {tar.offset}")


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """The ``(key, suffix)`` of a member; the suffix is in lower case."""
    folder, slash, last = member.name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return (folder + slash + stem).removeprefix("./"), (dot + suffix).lower()


def _item(name: str, path: Path, sample: _Sample) -> CaptionedImage | Flaw:
    origin, where = f"{name}:{sample.key}", f"{path}:{sample.key}"
    try:
        if len(sample.images) > 1:
            found = ", ".join(PurePosixPath(member.name).name for member in sample.images)
            raise UserError(f"{where}: expected one picture, found {found}.")
        if not sample.captions:
            raise UserError(f"{where}: expected a .json or .txt with the caption beside the picture, found none.")
        if not sample.images:
            raise UserError(f"{where}: expected a picture ({', '.join(SUFFIXES)}) beside the caption, found none.")
        caption = _caption(sample.captions, where)
    except UserError as error:
        return Flaw(origin, str(error))
    member = sample.images[0]
    offset, size, of = member.offset_data, member.size, f"{path}:{member.name}"
    return CaptionedImage(caption, origin, lambda: read_file(path, of, offset, size))


def _caption(captions: dict[str, bytes], where: str) -> str:
    """The caption: "prompt" in the .json or, if there is no .json, the .txt."""
    record = parse_object(decoded(captions[".json"], f"{where}.json"), f"{where}.json") if ".json" in captions else {}
    if "prompt" in record or ".txt" not in captions:
        if "prompt" not in record:
            raise UserError(f"{where}.json: expected the caption under 'prompt', found keys {sorted(record)}.")
        return text_field(record, "prompt", f"{where}.json").strip()
    return caption_text(captions[".txt"], f"{where}.txt")


def _repeated(name: str, path: Path, key: str) -> Flaw:
    return Flaw(
        f"{name}:{key} again",
        f"{path}:{key}: expected the members of a key one after the other, found more of them further on.",
    )


def _tars(path: Path) -> dict[str, Path]:
    """The .tar files by their names relative to ``path``."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise UserError(f"{path}: expected a .tar or a folder with some, found nothing.")
    tars = {tar.relative_to(path).as_posix(): tar for tar in files_below(path, [".tar"])}
    if not tars:
        raise UserError(f"{path}: expected .tar files in this folder or below it, found none.")
    return dict(sorted(tars.items()))
