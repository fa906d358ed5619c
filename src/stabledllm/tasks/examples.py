"""Sequences of many examples in little memory: their text stays in its file and is read again on each access."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from stabledllm.errors import UserError
from stabledllm.tasks.files import parse_object, read_places
from stabledllm.tasks.text_files import decoded

Examples = Sequence[dict]
Make = Callable[[dict, str], Sequence[dict]]


class _Sequence(Sequence):
    """The base class of this module's sequences, with slices and comparison."""

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Picked(self, range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._at(place % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None


class Stored(_Sequence):
    """The examples of a file of JSON lines, read from the file on each access.

    Args:
        make: makes the examples of a line from its object and its ``file:line``.
        limit: number of examples at which reading stops.

    Raises:
        UserError: anything wrong with the file or a row of it; all rows are read once at the beginning.
    """

    def __init__(self, path: Path, make: Make, limit: int | None = None):
        self._path, self._make = path, make
        self._offsets, self._numbers, self._which = array("q"), array("q"), array("i")
        for offset, number, record in read_places(path):
            for which in range(len(make(record, f"{path}:{number}"))):
                self._offsets.append(offset)
                self._numbers.append(number)
                self._which.append(which)
            if limit is not None and len(self) >= limit:
                break
        self._state = self._file_state()

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[dict]:
        with self._open() as file:
            for place in range(len(self)):
                yield self._read(file, place)

    def _at(self, place: int) -> dict:
        with self._open() as file:
            return self._read(file, place)

    def _read(self, file: BinaryIO, place: int) -> dict:
        file.seek(self._offsets[place])
        origin = f"{self._path}:{self._numbers[place]}"
        record = parse_object(decoded(file.readline(), str(self._path), self._numbers[place]), origin)
        return self._make(record, origin)[self._which[place]]

    def _open(self) -> BinaryIO:
        if not self._path.is_file() or self._file_state() != self._state:
            raise UserError(f"{self._path}: expected a file that stays as it is while it is in use, found it changed.")
        return self._path.open("rb")

    def _file_state(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_size, status.st_mtime_ns


class Spooled(_Sequence):
    """Examples from where they can only be read in order: they are read once, into a temporary file without a name.

    Args:
        examples: what JSON can write.
    """

    def __init__(self, examples: Iterable[dict]):
        self._file, self._ends = tempfile.TemporaryFile(), array("q", [0])  # noqa: SIM115
        for example in examples:
            content = json.dumps(example, ensure_ascii=False).encode("utf-8", "surrogatepass")
            self._store(self._file.write, content)
            self._ends.append(self._ends[-1] + len(content))
        self._store(self._file.flush)

    @staticmethod
    def _store(write: Callable, *content: bytes) -> None:
        try:
            write(*content)
        except OSError as error:
            error.filename = tempfile.gettempdir()  # the file has no name that an error could tell
            raise

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, place: int) -> dict:
        start, end = self._ends[place], self._ends[place + 1]
        # Without a position of its own, so that processes that share the file do not disturb each other.
        return json.loads(os.pread(self._file.fileno(), end - start, start))

    def __iter__(self) -> Iterator[dict]:
        return map(self._at, range(len(self)))


class Picked(_Sequence):
    """Some of another sequence's examples, in an order of their own."""

    def __init__(self, base: Examples, places: Sequence[int]):
        self._base, self._places = base, places

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, place: int) -> dict:
        return self._base[self._places[place]]

    def __iter__(self) -> Iterator[dict]:
        places = self._places
        if any(a >= b for a, b in pairwise(places)):
            yield from (self._base[place] for place in places)
            return
        # In increasing order a file is read once, from its beginning to its end.
        waiting = iter(places)
        following = next(waiting, None)
        for place, example in enumerate(self._base):
            if following is None:
                return
            if place == following:
                yield example
                following = next(waiting, None)


class Mapped(_Sequence):
    """The examples of another sequence, each changed on access."""

    def __init__(self, base: Sequence, change: Callable[..., dict]):
        self._base, self._change = base, change

    def __len__(self) -> int:
        return len(self._base)

    def _at(self, place: int) -> dict:
        return self._change(self._base[place])

    def __iter__(self) -> Iterator[dict]:
        return map(self._change, self._base)


def made(records: Iterable[tuple[str, dict]], make: Make, limit: int | None = None) -> list[dict]:
    """Make the examples of records that do not come from a file of JSON lines, such as the hub's."""
    examples: list[dict] = []
    for origin, record in records:
        examples += make(record, origin)
        if limit is not None and len(examples) >= limit:
            break
    return examples


def picked(examples: Examples, places: Iterable[int]) -> Examples:
    """The examples at some places, without a copy of them."""
    return Picked(examples, array("q", places))
