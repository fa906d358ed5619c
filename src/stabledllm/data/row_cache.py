"""A cache of tokenised rows on disk: large data are read and tokenised once. See docs/tokenised_rows.md."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from stabledllm.config.settings import DataSettings
from stabledllm.data.chosen import Chosen
from stabledllm.data.data_key import data_key, specs_of, state_of, stored_files
from stabledllm.data.images import are_images
from stabledllm.data.reading import FileState
from stabledllm.data.row_store import StoredRows, StoreWriter, is_complete, size_of, sound_parts
from stabledllm.data.rows import Encoded, EncodingOptions, encode_part, refuse_none
from stabledllm.data.text import are_documents, encode_documents, packed, packing_order
from stabledllm.data.token_rows import RowsBuilder, TokenRows
from stabledllm.data.worker_pool import default_workers, in_parts, mapped
from stabledllm.errors import UserError
from stabledllm.runtime.caches import cache_folder
from stabledllm.runtime.files import write_bytes
from stabledllm.runtime.folders import writable_folder
from stabledllm.runtime.locks import waiting_for
from stabledllm.runtime.showing import bar
from stabledllm.tasks.examples import Examples

IN_MEMORY = 32 << 20
"""Bytes of files below which rows stay in memory, unless ``data.cache`` is given."""
PART = 2048
"""Examples that are encoded at once, and stored with a checksum of their own."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Encoding:
    """How the examples of a split become rows: ``length``, ``short_share``, ``seed`` and ``limit`` are of documents."""

    options: EncodingOptions
    length: int
    short_share: float
    seed: int
    limit: int | None


@dataclass(frozen=True)
class RowCache:
    """The cache of the rows that one set of data settings gives.

    Args:
        folder: its own, named by everything that decides the rows. files: the data's files as they were when that name
            was made. workers: the number of processes that encode.
    """

    folder: Path
    files: tuple[FileState, ...]
    workers: int

    def chosen(self, name: str, choose: Callable[[], Chosen], say: Say = lambda _: None) -> Chosen:
        """What ``choose`` returns, under a name: stored, so that next time no example is read before its splits are.

        One process chooses, others wait. Nothing is stored of test rows that JSON does not give back as they are.

        Raises:
            UserError: one of ``choose``, a folder that cannot be written, or a file that changed meanwhile.
        """
        path = self.folder / f"{name}.json"
        stored = _read(path)
        if stored is None:
            with self._alone(say):
                stored = _read(path)  # made while this process waited
                if stored is None:
                    return self._choose(path, choose)
        return Chosen(**stored, read=lambda: choose().splits, cache=self)

    def _choose(self, path: Path, choose: Callable[[], Chosen]) -> Chosen:
        found = choose()
        self.refuse_changed()
        values = {"test": found.test, "notes": found.notes, "digests": found.digests}
        if json.loads(json.dumps(values, default=str)) == values:
            _write(path, values)
        return replace(found, cache=self)

    def rows(
        self, name: str, tokenizer, examples: Callable[[], Examples], encoding: Encoding, say: Say = lambda _: None
    ) -> Encoded:
        """The encoded examples, under a name, from the disk; what is missing or damaged there is made first.

        One process makes them, others wait; to read them no lock is taken and nothing is written. After a kill the
        parts that are whole are kept.

        Args:
            examples: called where rows are missing. tokenizer: one with an ``identity``.

        Raises:
            UserError: an example that cannot be encoded, no row left, a folder that cannot be written, or a file that
                changed meanwhile.
        """
        home = self.folder / f"{name}-{tokenizer.identity[:16]}"
        parts = sound_parts(home)
        if is_complete(parts):
            say(f"{name}: tokenised before, in {home}")
        else:
            with self._alone(say):
                parts = sound_parts(home)  # perhaps all, made while this process waited
                if not is_complete(parts):
                    parts = self._make(home, name, tokenizer, examples(), encoding, parts, say)
        encoded = Encoded(StoredRows(home), [origin for part in parts for origin in part.dropped])
        refuse_none(encoded, encoding.options)
        return encoded

    def refuse_changed(self) -> None:
        """Refuse to go on where a file of the data is no longer what its digest was made of.

        Raises:
            UserError: naming the file.
        """
        for state in self.files:
            path = Path(state.path)
            if not path.is_file() or state_of(path) != state:
                raise UserError(f"{path}: expected a file that stays as it is while it is in use, found it changed.")

    def _make(
        self, home: Path, name: str, tokenizer, examples: Examples, encoding: Encoding, sound: list, say: Say
    ) -> list:
        if sound:
            say(f"{name}: {sum(part.rows for part in sound)} rows in {home} are whole; the rest is tokenised")
        ids = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        with StoreWriter(home, ids) as store, bar(len(examples), f"tokenise {name}", "row") as shown:
            workers = self.workers if len(examples) > PART else 1
            make = _document_parts if are_documents(examples) else _example_parts
            for rows, count, dropped in make(examples, tokenizer, encoding, store.examples, workers, shown.update, say):
                store.append(rows, count, dropped)
            self.refuse_changed()
            store.append(RowsBuilder().rows(), 0, [], last=True)
        say(f"{name}: tokenised into {home} ({size_of(home) / 1e6:,.0f} MB)")
        return store.parts

    def _alone(self, say: Say):
        try:
            writable_folder(self.folder.parent)
        except UserError as error:
            raise UserError(f"{error} Tokenised rows are stored there; data.cache=FOLDER names another.") from None
        self.folder.mkdir(exist_ok=True)
        return waiting_for(self.folder / "rows.lock", say)


Parts = Iterator[tuple[TokenRows, int, list[str]]]
"""Rows, the number of examples that count as done with them, and the origins of dropped ones."""


def _example_parts(
    examples: Examples, tokenizer, encoding: Encoding, done: int, workers: int, progress: Callable, say: Say
) -> Parts:
    encode = partial(encode_part, tokenizer=tokenizer, options=encoding.options)
    progress(done)
    for part, encoded in mapped(encode, in_parts(islice(examples, done, None), PART), workers, say):
        progress(len(part))
        yield encoded.rows, len(part), encoded.dropped


def _document_parts(
    documents: Examples, tokenizer, encoding: Encoding, done: int, workers: int, progress: Callable, say: Say
) -> Parts:
    """Rows of documents, counted as rows: a row's tokens are of any document, so that all are encoded again."""
    places = packing_order(documents, encoding.seed)
    encode = partial(encode_documents, tokenizer=tokenizer)

    def encoded() -> Iterator[list[int]]:
        for part, ids in mapped(encode, in_parts((documents[place] for place in places), PART // 16), workers, say):
            progress(len(part))
            yield from ids

    options = {"length": encoding.length, "short_share": encoding.short_share, "seed": encoding.seed}
    rows = packed(encoded(), documents=len(places), **options)
    for part in in_parts(islice(rows, done, encoding.limit), PART):
        yield RowsBuilder(part).rows(), len(part), []


def cache_of(settings: DataSettings, load: Callable[[str, str], Examples]) -> RowCache | None:
    """The cache for data settings; None where the rows stay in memory: small, made or of images.

    Args:
        load: as for :func:`~stabledllm.data.data_key.data_key`.
    """
    specs = specs_of(settings)
    if any(map(are_images, specs.values())) or stored_files(settings.train, "train", settings) is None:
        return None
    files = {path for split, spec in specs.items() for path in stored_files(spec, split, settings) or []}
    states = tuple(state_of(path) for path in sorted(files))
    if settings.cache is None and sum(state.size for state in states) < IN_MEMORY:
        return None
    home = Path(settings.cache or cache_folder()).expanduser() / "rows"
    return RowCache(home / data_key(settings, load)[:24], states, settings.workers or default_workers())


def _write(path: Path, value: dict) -> None:
    """Write JSON with a checksum before it; not ``write_json``, which hides what looks like a secret, also in data."""
    content = json.dumps(value).encode()
    write_bytes(path, b"%08x\n" % zlib.crc32(content) + content)


def _read(path: Path) -> dict | None:
    """What :func:`_write` wrote; None where it is missing or damaged."""
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return json.loads(content) if checksum == b"%08x" % zlib.crc32(content) else None
