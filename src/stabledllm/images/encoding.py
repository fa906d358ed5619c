"""Encoding a source's images and appending them to a cache.

Batches begin at multiples of the batch size, wherever a run starts: a run that was killed and one that was not encode
the same batches, so that their codes are equal bit by bit.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stabledllm.errors import UserError
from stabledllm.images.cache_record import Dropped, PartRecord, Record
from stabledllm.images.codes import captions_file, code_dtype, codes_file, outside, read_part
from stabledllm.images.image import CaptionedImage, Flaw
from stabledllm.images.sizing import fit_image
from stabledllm.runtime.files import write_bytes

if TYPE_CHECKING:
    from stabledllm.images.tokenizer import ImageTokenizer

_THREADS = min(8, os.cpu_count() or 1)
"""Number of threads that decode images; Pillow lets them run in parallel."""


@dataclass(frozen=True)
class _State:
    """The state of a run: what is on disk, and what is encoded but not yet written.

    It is replaced in one step, so that an interrupt at any moment neither loses nor doubles a row.
    """

    record: Record
    waiting: tuple[tuple[CaptionedImage, np.ndarray], ...] = ()

    @property
    def rows(self) -> int:
        return self.record.rows + len(self.waiting)


class Encoder:
    """An encoder of the images that a cache lacks.

    Args:
        folder: the folder of the cache; ``record`` is its record on disk.
        drop: leave a bad image out and record it; otherwise it ends the run, after all before it is on disk.
        part: number of rows of a part; ``batch``: number of images that the tokenizer gets at once.
        progress: called with the number of images just done.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        tokenizer: ImageTokenizer,
        *,
        drop: bool,
        part: int,
        batch: int,
        progress: Callable[[int], None],
    ):
        self.folder, self.tokenizer = folder, tokenizer
        self.drop, self.part, self.batch, self.progress = drop, part, batch, progress
        self._state, self._dropped = _State(record), list(record.dropped)

    def run(self, items: Iterator[CaptionedImage | Flaw], rows: int | None) -> None:
        """Encode images until the cache has ``rows`` of them, or to the end of the source.

        However it ends, unless the process is killed outright, everything that was encoded is on disk.

        Raises:
            UserError: a bad image or source, a cache that is not of this source, a code outside the codebook.
        """
        fresh = _after(items, self.folder, self._state.record)
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                while rows is None or self._state.rows < rows:
                    size = self.batch - self._state.rows % self.batch
                    size = size if rows is None else min(size, rows - self._state.rows)
                    images, error = self._prepare(fresh, size, pool)
                    self._encode(images)
                    if error:
                        raise error
                    if len(images) < size:
                        self._state = replace(self._state, record=replace(self._state.record, complete=True))
                        return
                    while len(self._state.waiting) >= self.part:
                        self._write_part()
        finally:
            while self._state.waiting:
                self._write_part()
            self._write_record()

    def _prepare(
        self, fresh: Iterator[CaptionedImage | Flaw], size: int, pool: ThreadPoolExecutor
    ) -> tuple[list[tuple[CaptionedImage, np.ndarray]], UserError | None]:
        """The next ``size`` good images, and the error if one kept them from being so many; fewer at the end."""
        good: list[tuple[CaptionedImage, np.ndarray]] = []
        error = None
        while len(good) < size and not error:
            items, error = _take(fresh, size - len(good))
            if not items:
                break
            for item, result in zip(items, pool.map(self._decode, items), strict=True):
                if isinstance(result, np.ndarray):
                    good.append((item, result))
                elif self.drop:
                    self._dropped.append(Dropped(item.origin, str(result), self._state.rows + len(good)))
                else:
                    return good, result
        return good, error

    def _decode(self, item: CaptionedImage | Flaw) -> np.ndarray | UserError:
        record = self._state.record
        try:
            if isinstance(item, Flaw):
                raise UserError(item.reason)
            return fit_image(item.read(), record.side, record.fit, item.origin)
        except UserError as error:
            return error

    def _encode(self, images: list[tuple[CaptionedImage, np.ndarray]]) -> None:
        if not images:
            return
        record = self._state.record
        codes = self.tokenizer.encode(np.stack([array for _, array in images])).cpu().numpy()
        name, shape = f"tokenizer '{record.tokenizer}'", (len(images), record.tokens)
        if codes.shape != shape:
            raise UserError(f"{name}: expected codes of shape {shape}, found {codes.shape}.")
        if wrong := outside(codes, record.codebook_size):
            origin = images[wrong[0]][0].origin
            raise UserError(f"{name}: {origin}: expected codes in [0, {record.codebook_size}), found {wrong[1]}.")
        rows = zip((image for image, _ in images), codes.astype(code_dtype(record.codebook_size)), strict=True)
        self._state = replace(self._state, waiting=(*self._state.waiting, *rows))
        self.progress(len(images))

    def _write_part(self) -> None:
        """Write the first waiting rows: the two files of a part, and then the record."""
        record, waiting = self._state.record, self._state.waiting
        rows, rest = waiting[: self.part], waiting[self.part :]
        array = io.BytesIO()
        np.save(array, np.stack([codes for _, codes in rows]))
        lines = [json.dumps({"origin": image.origin, "caption": image.caption}) + "\n" for image, _ in rows]
        codes, captions, number = array.getvalue(), "".join(lines).encode(), len(record.parts)
        write_bytes(codes_file(self.folder, number), codes)
        write_bytes(captions_file(self.folder, number), captions)
        part = PartRecord(len(rows), hashlib.sha256(codes).hexdigest(), hashlib.sha256(captions).hexdigest())
        self._state = _State(replace(record, parts=(*record.parts, part)), rest)
        self._write_record()

    def _write_record(self) -> None:
        replace(self._state.record, dropped=tuple(self._dropped)).write(self.folder)


def _after(items: Iterator[CaptionedImage | Flaw], folder: Path, record: Record) -> Iterator[CaptionedImage | Flaw]:
    """The items of the source after the rows on disk, which are verified and compared with the source's first items."""
    left_out = {each.origin for each in record.dropped}
    items = (item for item in items if item.origin not in left_out)
    row = 0
    for number in range(len(record.parts)):
        part = read_part(folder, number, record)
        for origin, caption in zip(part.origins, part.captions, strict=True):
            item = next(items, None)
            if item is None or isinstance(item, Flaw) or (item.origin, item.caption) != (origin, caption):
                found = f"'{item.origin}' there" if item else "its end"
                raise UserError(
                    f"{folder}: expected '{origin}' and its caption as row {row} of the source, found {found}; "
                    f"deleting the folder makes it anew."
                )
            row += 1
    yield from items


def _take(items: Iterator[CaptionedImage | Flaw], n: int) -> tuple[list[CaptionedImage | Flaw], UserError | None]:
    """The next n items, and the error at which the source ended, if it did."""
    following = []
    try:
        following.extend(itertools.islice(items, n))
    except UserError as error:
        return following, error
    return following, None
