"""Images with captions in local files: a .jsonl, a folder of pairs, a folder with metadata.jsonl; captions alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stabledllm.errors import UserError
from stabledllm.images.image import SUFFIXES, CaptionedImage, Flaw, Source, caption_text, read_file
from stabledllm.tasks.files import read_jsonl, text_field
from stabledllm.tasks.text_files import files_below, has_ending, lines, open_binary, read_bytes

_METADATA = "metadata.jsonl"


def of_images(path: Path) -> Source:
    """The source that ``images:PATH`` names; its kind depends on the files there.

    Raises:
        UserError: nothing is there, or a file that is no .jsonl.
    """
    if path.is_dir():
        return Listed(path / _METADATA, "file_name", "text") if (path / _METADATA).is_file() else Pairs(path)
    if not has_ending(path, ".jsonl") or not path.is_file():
        found = "another file" if path.is_file() else "nothing"
        raise UserError(f"{path}: expected a .jsonl or a folder of pictures, found {found}.")
    return Listed(path, "image", "caption")


class _OneSplit:
    splits = ()
    seeded = False

    def rows(self, split: str) -> None:
        return None


@dataclass
class Listed(_OneSplit):
    """A source of images that the lines of a .jsonl name, relative to it, with their captions.

    Raises (from ``items``):
        UserError: a file that does not hold JSON lines.
    """

    path: Path
    image_key: str
    caption_key: str

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        named = set()
        for where, record in read_jsonl(self.path):
            origin = f"{self.path.name}:{where.rpartition(':')[2]}"
            named.add(self._file(record))
            try:
                yield self._image(record, origin, where)
            except UserError as error:
                yield Flaw(origin, str(error))
        if self.path.name == _METADATA:
            for name, file in _files(self.path.parent, SUFFIXES).items():
                if file not in named:
                    yield Flaw(name, f"{file}: expected a line of {_METADATA} with its caption, found none.")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(read_bytes(self.path))
        for _, record in read_jsonl(self.path):
            file = self._file(record)
            digest.update(b"%d\n" % (file.stat().st_size if file and file.is_file() else -1))
        return digest.hexdigest()

    def _file(self, record: dict) -> Path | None:
        name = record.get(self.image_key)
        return self.path.parent / name if isinstance(name, str) and name else None

    def _image(self, record: dict, origin: str, where: str) -> CaptionedImage:
        keys = (self.image_key, self.caption_key)
        if missing := [key for key in keys if key not in record]:
            raise UserError(f"{where}: expected keys '{keys[0]}' and '{keys[1]}', found no '{missing[0]}'.")
        caption = text_field(record, self.caption_key, where).strip()
        text_field(record, self.image_key, where)
        file = self._file(record)
        if not file.is_file():
            raise UserError(f"{where}: expected the picture {file}, found no such file.")
        return CaptionedImage(caption, origin, lambda: read_file(file))


@dataclass
class Pairs(_OneSplit):
    """A source of the pairs ``NAME.jpg|jpeg|png|webp`` and ``NAME.txt``, the caption, in a folder and those below."""

    folder: Path

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        by_name: dict[str, list[str]] = {}
        files = _files(self.folder, (*SUFFIXES, ".txt"))
        for name in files:
            by_name.setdefault(name.rpartition(".")[0], []).append(name)
        for names in by_name.values():
            captions = [name for name in names if name.lower().endswith(".txt")]
            images = [name for name in names if name not in captions]
            origin = (images or captions)[0]
            try:
                yield self._image(origin, images, captions, files)
            except UserError as error:
                yield Flaw(origin, str(error))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, file in _files(self.folder, (*SUFFIXES, ".txt")).items():
            digest.update(json.dumps([name, file.stat().st_size]).encode())
            if name.lower().endswith(".txt"):
                digest.update(read_bytes(file))
        return digest.hexdigest()

    def _image(self, origin: str, images: list[str], captions: list[str], files: dict[str, Path]) -> CaptionedImage:
        file = files[origin]
        if not captions:
            raise UserError(f"{file}: expected {file.stem}.txt with its caption beside it, found none.")
        if not images:
            raise UserError(f"{file}: expected {file.stem}.jpg, .jpeg, .png or .webp beside it, found none.")
        if len(images) > 1:
            raise UserError(f"{file.parent / file.stem}: expected one picture, found {', '.join(images)}.")
        caption = caption_text(read_bytes(files[captions[0]]), str(files[captions[0]]))
        return CaptionedImage(caption, origin, lambda: read_file(file))


class Captions(_OneSplit):
    """A source of captions without images, for evaluation: the lines of a .txt, or "caption" in those of a .jsonl."""

    def __init__(self, path: Path):
        if not has_ending(path, ".txt", ".jsonl") or not path.is_file():
            found = "another file" if path.is_file() else "nothing" if not path.exists() else "a folder"
            raise UserError(f"{path}: expected a .txt with one caption a line, or a .jsonl, found {found}.")
        self.path = path

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        for where, line in self._lines():
            origin = f"{self.path.name}:{where.rpartition(':')[2]}"
            try:
                yield CaptionedImage(_caption(line, where), origin, lambda where=where: _without_image(where))
            except UserError as error:
                yield Flaw(origin, str(error))

    def fingerprint(self) -> str:
        return hashlib.sha256(read_bytes(self.path)).hexdigest()

    def _lines(self) -> Iterator[tuple[str, str | dict]]:
        if has_ending(self.path, ".jsonl"):
            yield from read_jsonl(self.path)
            return
        with open_binary(self.path) as file:
            for _, number, line in lines(file, str(self.path)):
                yield f"{self.path}:{number}", line


def _caption(line: str | dict, where: str) -> str:
    if isinstance(line, str):
        return caption_text(line.encode(), where)
    return text_field(line, "caption", where).strip()


def _without_image(where: str) -> NoReturn:
    raise UserError(f"{where}: expected a picture, found a caption alone, which only evaluation takes.")


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by their names relative to the folder, sorted by name; hidden ones are left out."""
    found = {path.relative_to(folder).as_posix(): path for path in files_below(folder, suffixes)}
    return {name: found[name] for name in sorted(found) if not name.startswith(".") and "/." not in name}
