"""The file ``cache.json`` of a cache of codes: what they are of, the parts with checksums, and the dropped images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json, write_json

SCHEMA = "stabledllm/codes/1"


@dataclass(frozen=True)
class Dropped:
    """A bad image that was left out; in the source it comes before the image of code row ``row``."""

    origin: str
    reason: str
    row: int


@dataclass(frozen=True)
class PartRecord:
    """The number of rows of a part, and the SHA-256 of its two files."""

    rows: int
    codes: str
    captions: str


@dataclass(frozen=True)
class Record:
    """The content of ``cache.json``."""

    tokenizer: str
    tokenizer_fingerprint: str
    codebook_size: int
    side: int
    tokens: int
    """The number N of codes of an image."""
    fit: str
    source: dict
    """Its specification, fingerprint, split and seed; null where one has no effect."""
    parts: tuple[PartRecord, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    complete: bool = False
    """Whether all images of the source are encoded."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def write(self, folder: Path) -> None:
        write_json(folder / "cache.json", {"schema": SCHEMA} | asdict(self))


def record_of(folder: Path) -> Record:
    """Read the record of a cache.

    Raises:
        UserError: no cache, or a broken ``cache.json``.
    """
    path = folder / "cache.json"
    value = read_json(path, SCHEMA)
    try:
        del value["schema"]
        value["parts"] = tuple(PartRecord(**part) for part in value["parts"])
        value["dropped"] = tuple(Dropped(**each) for each in value["dropped"])
        record = Record(**value)
        numbers = [record.codebook_size, record.side, record.tokens, *(part.rows for part in record.parts)]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise TypeError("a size that is no positive number")
        if set(record.source) != {"spec", "fingerprint", "split", "seed"}:
            raise TypeError("a source of other keys")
        return record
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected what a cache of codes says of itself, found it broken ({error}).") from None
