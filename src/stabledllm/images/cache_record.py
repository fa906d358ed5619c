"""``cache.json``: what a cache of codes is of, its parts and their checksums, and what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json, write_json

SCHEMA = "stabledllm/codes/1"


@dataclass(frozen=True)
class Dropped:
    """An image that was left out; it stands before the image of code row ``row``."""

    origin: str
    reason: str
    row: int


@dataclass(frozen=True)
class PartRecord:
    """Rows of a part, and the SHA-256 of its two files."""

    rows: int
    codes: str
    captions: str


@dataclass(frozen=True)
class Record:
    """What ``cache.json`` says."""

    tokenizer: str
    tokenizer_fingerprint: str
    codebook_size: int
    side: int
    tokens: int
    """N."""
    fit: str
    source: dict
    """Its specification, fingerprint, split and seed; null where one has no effect."""
    parts: tuple[PartRecord, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    complete: bool = False
    """The source has no further images."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def write(self, folder: Path) -> None:
        write_json(folder / "cache.json", {"schema": SCHEMA} | asdict(self))


def record_of(folder: Path) -> Record:
    """What a cache says of itself.

    Raises:
        UserError: no cache, or a ``cache.json`` that is broken.
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
