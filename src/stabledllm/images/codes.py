"""Reading codes of images from disk, row by row, as :mod:`stabledllm.images.cache` writes them.

A folder holds parts, ``part-00000.npy`` (codes, (n, N), the smallest unsigned type that holds the codebook) and
``part-00000.jsonl`` (their captions and origins), and ``cache.json``, which says what they are and their checksums.
Legend: n images of a part, N codes of an image.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stabledllm.errors import UserError
from stabledllm.images.cache_record import Dropped, PartRecord, Record, record_of

if TYPE_CHECKING:
    from stabledllm.images.tokenizer import ImageTokenizer


@dataclass(frozen=True)
class Part:
    """The rows of a part, in memory."""

    captions: list[str]
    origins: list[str]
    codes: np.ndarray


class CodeRows(Sequence):
    """The codes of images by row, int64 of shape (N,), each read from disk on access."""

    def __init__(self, files: list[Path], rows: list[int], n: int, tokens: int, dtype: np.dtype):
        self._files, self._n, self._tokens, self._dtype = files, n, tokens, dtype
        self._ends = np.cumsum(rows)

    def __len__(self) -> int:
        return self._n

    def later(self, i: int) -> StoredCodes:
        """Row i, to be read from disk later."""
        return StoredCodes(self, i, self._tokens)

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        part = int(np.searchsorted(self._ends, i, side="right"))
        size = self._tokens * self._dtype.itemsize
        # Files are opened for each read: a big cache has more parts than a process may have open files.
        with self._files[part].open("rb") as file:
            file.seek(int(i - self._ends[part]) * size, io.SEEK_END)
            return np.frombuffer(file.read(size), self._dtype).astype(np.int64)


class StoredCodes:
    """One row of :class:`CodeRows`, read from disk whenever it is turned into an array."""

    def __init__(self, rows: CodeRows, i: int, tokens: int):
        self._rows, self._i, self._tokens = rows, i, tokens

    def __len__(self) -> int:
        return self._tokens

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        codes = self._rows[self._i]
        return codes if dtype is None else codes.astype(dtype)


@dataclass(frozen=True)
class Codes:
    """The codes and captions of images, in the order of their source."""

    captions: list[str]
    origins: list[str]
    digests: list[str]
    """The digest of each image's codes, equal where two captions are of one image."""
    codes: CodeRows
    side: int
    codebook_size: int
    tokenizer: str
    tokenizer_fingerprint: str
    dropped: list[Dropped]
    folder: Path
    """The folder of the cache."""

    def __len__(self) -> int:
        return len(self.captions)


def open_codes(folder: Path, tokenizer: ImageTokenizer | None = None, rows: int | None = None) -> Codes:
    """The first ``rows`` images of a cache, or all; fewer where it has fewer. Every part that is read is verified.

    Raises:
        UserError: no cache, one that is broken or has no images, or one of another tokenizer.
    """
    record = record_of(folder)
    if tokenizer is not None and record.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder}: expected codes of the tokenizer '{tokenizer.name}' ({tokenizer.fingerprint[:12]}), found those "
            f"of '{record.tokenizer}' ({record.tokenizer_fingerprint[:12]})."
        )
    n = min(rows or record.rows, record.rows)
    if not n:
        raise UserError(f"{folder}: expected the codes of at least one picture, found none.")
    captions, origins, digests = [], [], []
    for number in range(_parts_of(record, n)):
        part = read_part(folder, number, record)
        captions += part.captions
        origins += part.origins
        digests += [hashlib.sha256(row.tobytes()).hexdigest()[:32] for row in part.codes]
    rows_of = CodeRows(
        [codes_file(folder, number) for number in range(len(record.parts))],
        [part.rows for part in record.parts],
        n,
        record.tokens,
        code_dtype(record.codebook_size),
    )
    dropped = [each for each in record.dropped if each.row < n or n == record.rows]
    return Codes(
        captions[:n],
        origins[:n],
        digests[:n],
        rows_of,
        record.side,
        record.codebook_size,
        record.tokenizer,
        record.tokenizer_fingerprint,
        dropped,
        folder,
    )


def read_part(folder: Path, number: int, record: Record) -> Part:
    """Read a part and verify it against its checksums.

    Raises:
        UserError: a file that is missing or altered, or a code outside the codebook; the message names the row.
    """
    part = record.parts[number]
    if not (codes_file(folder, number).is_file() and captions_file(folder, number).is_file()):
        raise missing_part(folder, number)
    codes = _codes_of(codes_file(folder, number), part, record)
    content = _verified(captions_file(folder, number), part.captions)
    lines = [json.loads(line) for line in content.removesuffix(b"\n").split(b"\n")]
    return Part([line["caption"] for line in lines], [line["origin"] for line in lines], codes)


def codes_file(folder: Path, number: int) -> Path:
    """The path of a part's codes, ``part-NUMBER.npy``."""
    return folder / f"part-{number:05d}.npy"


def captions_file(folder: Path, number: int) -> Path:
    """The path of a part's captions, ``part-NUMBER.jsonl``."""
    return folder / f"part-{number:05d}.jsonl"


def missing_part(folder: Path, number: int) -> UserError:
    """The error about a missing file of a part."""
    files = codes_file(folder, number), captions_file(folder, number)
    file = next(file for file in files if not file.is_file())
    return UserError(
        f"{file}: expected a part of the cache, found nothing; deleting the parts after it makes it and them anew."
    )


def code_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned type that holds every code."""
    return np.min_scalar_type(codebook_size - 1)


def outside(codes: np.ndarray, codebook_size: int) -> tuple[int, int] | None:
    """The ``(row, code)`` of the first code that is not in [0, codebook_size), or None; codes of shape (n, N)."""
    wrong = np.argwhere((codes < 0) | (codes >= codebook_size))
    return (int(wrong[0, 0]), int(codes[tuple(wrong[0])])) if len(wrong) else None


def _codes_of(path: Path, part: PartRecord, record: Record) -> np.ndarray:
    content = _verified(path, part.codes)
    try:
        codes = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: expected an array of codes, found something broken ({error}).") from None
    shape, dtype = (part.rows, record.tokens), code_dtype(record.codebook_size)
    if codes.shape != shape or codes.dtype != dtype:
        raise UserError(f"{path}: expected {dtype} of shape {shape}, found {codes.dtype} of shape {codes.shape}.")
    if wrong := outside(codes, record.codebook_size):
        raise UserError(f"{path}: row {wrong[0]}: expected codes in [0, {record.codebook_size}), found {wrong[1]}.")
    return codes


def _verified(path: Path, checksum: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(
            f"{path}: expected what cache.json has the checksum of, found other content; deleting it and the parts "
            f"after it makes them anew."
        )
    return content


def _parts_of(record: Record, n: int) -> int:
    """The number of parts that hold the first n rows."""
    ends = np.cumsum([part.rows for part in record.parts])
    return int(np.searchsorted(ends, n)) + 1
