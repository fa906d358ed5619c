"""Rows of tokens in files of flat arrays, read through memory maps; checked by checksums, and continued after a kill.

A store is a folder with a file of values and one of ends for each column, and ``parts.jsonl``, whose lines say what
each part appended to every file, with its checksum. A part counts once its line stands there; whatever lies behind the
last sound part is cut off when the store is continued.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stabledllm.data.token_rows import COLUMNS, Ragged, TokenRows
from stabledllm.errors import UserError
from stabledllm.runtime.files import write_bytes
from stabledllm.runtime.folders import sweep, temporary_beside

_PARTS, _COUNTS = "parts.jsonl", "counts"
_AGAIN = "start again, and it is made again."
_TYPES = {"origin": np.uint8}
_FILES = (_COUNTS, *(f"{name}.{kind}" for name in COLUMNS for kind in ("values", "ends")))


class Part(NamedTuple):
    """What one part appended: examples read, rows, origins of dropped rows, and each file's bytes and checksum."""

    examples: int
    rows: int
    dropped: list[str]
    ids: str
    """Type of the token ids."""
    files: dict[str, list[int]]
    """``[bytes, crc32]`` by name."""
    last: bool = False
    """Whether the store is complete with it."""


class StoredRows(TokenRows):
    """The rows of a complete store, in memory maps: only what is read takes memory. It is pickled as the folder's name.

    Args:
        folder: of a store that :func:`sound_parts` found complete. order: as for :class:`TokenRows`.
    """

    def __init__(self, folder: Path, order: np.ndarray | None = None):
        parts = list(_lines(folder))
        if not parts:
            raise UserError(f"{folder}: expected a store of tokenised rows, found it gone; {_AGAIN}")
        sizes = Counter()
        for part in parts:
            sizes.update({name: size for name, (size, _) in part.files.items()})
        types = _TYPES | {"input_ids": np.dtype(parts[0].ids)}
        columns = {
            name: Ragged(
                _mapped(folder / f"{name}.values", types.get(name, np.int32), sizes),
                _mapped(folder / f"{name}.ends", np.int64, sizes),
            )
            for name in COLUMNS
        }
        super().__init__(columns, _mapped(folder / _COUNTS, np.int32, sizes).reshape(-1, 3), order)
        self._place, self._given_order = folder.absolute(), order

    def __reduce__(self):
        return StoredRows, (self._place, self._given_order)

    def in_order(self, order: np.ndarray) -> StoredRows:
        rows = StoredRows.__new__(StoredRows)  # on the same maps: the files may be gone by now
        rows.__dict__.update(self.__dict__, _order=order, _given_order=order)
        return rows


class StoreWriter:
    """Appends parts to a store that is not complete, after those that are sound already.

    Args:
        folder: of the store; made where it is missing. ids: type of the token ids, uint16 or uint32.
    """

    def __init__(self, folder: Path, ids: np.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._ids = folder, np.dtype(ids)
        self.parts = sound_parts(folder)
        sweep(folder)
        self._cut()
        self._files = ExitStack()
        self._open = {name: self._files.enter_context((folder / name).open("ab")) for name in (*_FILES, _PARTS)}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def examples(self) -> int:
        """The number of examples that the parts so far were made of."""
        return sum(part.examples for part in self.parts)

    def append(self, rows: TokenRows, examples: int, dropped: list[str], *, last: bool = False) -> None:
        """Append rows as one part. ``last`` completes the store."""
        content = {_COUNTS: rows.counts.astype(np.int32).tobytes()}
        for name, column in rows.columns.items():
            kind = self._ids if name == "input_ids" else _TYPES.get(name, np.int32)
            content[f"{name}.values"] = column.values.astype(kind).tobytes()
            before = self._open[f"{name}.values"].tell() // np.dtype(kind).itemsize
            # Only the very first number, 0, is no row's end.
            ends = column.ends if not self.parts else column.ends[1:]
            content[f"{name}.ends"] = (ends.astype(np.int64) + before).tobytes()
        for name, data in content.items():
            self._open[name].write(data)
            self._open[name].flush()
        files = {name: [len(data), zlib.crc32(data)] for name, data in content.items()}
        self.parts.append(Part(examples, len(rows), dropped, self._ids.name, files, last))
        self._open[_PARTS].write(_line(self.parts[-1]))
        self._open[_PARTS].flush()

    def _cut(self) -> None:
        """Cut everything behind the sound parts off, so that the next part follows them.

        A store that was complete may be in use. It is cut as a copy that takes its place: a process that maps the files
        would read zeros behind a cut.
        """
        in_use = self._was_complete()
        for name in _FILES:
            path, size = self._folder / name, sum(part.files[name][0] for part in self.parts)
            if in_use and path.exists():
                copy = temporary_beside(path)
                shutil.copyfile(path, copy)
                os.truncate(copy, size)
                copy.replace(path)
            else:
                with path.open("ab") as file:
                    file.truncate(size)
        write_bytes(self._folder / _PARTS, b"".join(map(_line, self.parts)))

    def _was_complete(self) -> bool:
        try:
            return b'"last": true' in (self._folder / _PARTS).read_bytes()
        except FileNotFoundError:
            return True  # it stands there from the first part on


def sound_parts(folder: Path) -> list[Part]:
    """The parts from the first on whose bytes are all there and fit their checksums; none where there is no store."""
    sound: list[Part] = []
    with ExitStack() as files:
        try:
            opened = {name: files.enter_context((folder / name).open("rb")) for name in _FILES}
        except FileNotFoundError:
            return sound
        for part in _lines(folder):
            for name, (size, checksum) in part.files.items():
                data = opened[name].read(size)
                if len(data) != size or zlib.crc32(data) != checksum:
                    return sound
            sound.append(part)
    return sound


def is_complete(parts: list[Part]) -> bool:
    """Whether sound parts are all that there will be."""
    return bool(parts) and parts[-1].last


def size_of(folder: Path) -> int:
    """The bytes that a store takes."""
    return sum(os.path.getsize(folder / name) for name in (*_FILES, _PARTS))


def _line(part: Part) -> bytes:
    text = json.dumps(part._asdict(), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _lines(folder: Path) -> Iterator[Part]:
    """The parts that ``parts.jsonl`` names, up to its first broken line."""
    try:
        file = (folder / _PARTS).open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if checksum != b"%08x" % zlib.crc32(text):
                return
            yield Part(**json.loads(text))


def _mapped(path: Path, kind: Any, sizes: Counter) -> np.ndarray:
    numbers = sizes[path.name] // np.dtype(kind).itemsize
    if not numbers:
        return np.empty(0, kind)  # an empty file cannot be mapped
    try:
        # A plain array over the map: a memmap would pay for its subclass at every access.
        return np.asarray(np.memmap(path, kind, "r", shape=(numbers,)))
    except (OSError, ValueError):
        raise UserError(
            f"{path}: expected a file of the cache of tokenised rows of at least {sizes[path.name]} bytes, found it "
            f"gone or shorter; {_AGAIN}"
        ) from None
