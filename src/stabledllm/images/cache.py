"""A cache of images' codes on disk, so that every image is decoded and encoded only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stabledllm.errors import UserError
from stabledllm.images.cache_record import Record, record_of
from stabledllm.images.codes import Codes, captions_file, codes_file, missing_part, open_codes
from stabledllm.images.encoding import Encoder
from stabledllm.images.image import Source
from stabledllm.images.sizing import Fit
from stabledllm.images.sources import check_split, no_images, parse, source_of
from stabledllm.runtime.folders import sweep, writable_folder
from stabledllm.runtime.locks import waiting_for

if TYPE_CHECKING:
    from stabledllm.images.tokenizer import ImageTokenizer


def cached_codes(
    spec: str,
    tokenizer: ImageTokenizer,
    *,
    folder: Path,
    split: str,
    rows: int | None,
    seed: int,
    side: int,
    fit: Fit,
    on_bad: Literal["refuse", "drop"],
    part: int = 512,
    batch: int = 32,
    progress: Callable[[int], None] = lambda _: None,
) -> Codes:
    """The codes of the first ``rows`` images of ``spec``, or of all; fewer where it has fewer.

    They are stored in a folder of their own in ``folder``, named by everything that determines the codes. Stored codes
    are read; only missing ones are made, by one process while others that need them wait. Where nothing is missing,
    no image and no caption of the source is read.

    Args:
        spec: names the images; for ``codes:FOLDER`` the codes in the folder are returned.
        split, seed: have an effect where they do for :func:`stabledllm.images.sources.captioned_images`.
        side: side of the images in pixels; ``fit`` says what happens to images of another size.
        on_bad: ``refuse``: a bad image or caption ends the run, with all before it on disk; ``drop``: it is left out
            and recorded.
        part: number of images of a file on disk.
        batch: number of images encoded at once.
        progress: called with the number of images just done, first with those on disk.

    Raises:
        UserError: anything wrong with the source, an image or the cache; the message names the file.
    """
    kind, where = parse(spec)
    if kind == "codes":
        codes = open_codes(Path(where).expanduser(), tokenizer, rows)
        if codes.side != side:
            raise UserError(f"{where}: expected codes of pictures of {side} pixels, found {codes.side} pixels.")
        progress(len(codes))
        return codes
    source = source_of(spec)
    check_split(spec, source, split)
    if kind == "captions":
        raise UserError(f"data '{spec}': expected pictures, found captions alone, which only evaluation takes.")
    rows = rows or source.rows(split)
    planned = _planned(spec, source, tokenizer, split, seed, side, fit)
    home = folder / _name(planned)
    writable_folder(folder)
    sweep(folder)
    with waiting_for(folder / f"{home.name}.lock"):
        sweep(home)
        record = _on_disk(home, planned)
        _refuse_dropped(record, rows, on_bad)
        progress(record.rows if rows is None else min(record.rows, rows))
        if not record.complete and (rows is None or record.rows < rows):
            encoder = Encoder(home, record, tokenizer, drop=on_bad == "drop", part=part, batch=batch, progress=progress)
            encoder.run(source.items(split, seed), rows)
    _refuse_empty(record_of(home), spec, source, split)
    return open_codes(home, tokenizer, rows)


def _planned(
    spec: str, source: Source, tokenizer: ImageTokenizer, split: str, seed: int, side: int, fit: str
) -> Record:
    """The record of a cache that is still empty."""
    if side % tokenizer.downsampling:
        raise UserError(
            f"tokenizer '{tokenizer.name}': expected a side that {tokenizer.downsampling} divides, found {side}."
        )
    return Record(
        tokenizer.name,
        tokenizer.fingerprint,
        tokenizer.codebook_size,
        side,
        (side // tokenizer.downsampling) ** 2,
        fit,
        {
            "spec": spec,
            "fingerprint": source.fingerprint(),
            "split": split if source.splits else None,
            "seed": seed if source.seeded else None,
        },
    )


def _identity(record: Record) -> dict:
    """Everything that determines the codes; the source's path and the tokenizer's name do not."""
    kind = record.source["spec"].partition(":")[0]
    source = record.source | {"spec": kind}
    return {"source": source, "tokenizer": record.tokenizer_fingerprint, "side": record.side, "fit": record.fit}


def _name(record: Record) -> str:
    source, identity = record.source, json.dumps(_identity(record), sort_keys=True)
    kind = source["spec"].partition(":")[0]
    return f"{kind}-{source['split'] or 'all'}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _on_disk(home: Path, planned: Record) -> Record:
    """The record of the codes on disk; parts that were deleted from the end are left out, to be made again.

    Raises:
        UserError: other codes than planned, or a missing part that has others after it.
    """
    if not (home / "cache.json").is_file():
        return planned
    record = record_of(home)
    if _identity(record) != _identity(planned):
        raise UserError(f"{home}: expected the codes of '{planned.source['spec']}' as now wanted, found others.")
    present = [
        codes_file(home, number).is_file() and captions_file(home, number).is_file()
        for number in range(len(record.parts))
    ]
    if all(present):
        return record
    first = present.index(False)
    if any(present[first:]):
        raise missing_part(home, first)
    shortened = replace(record, parts=record.parts[:first], complete=False)
    return replace(shortened, dropped=tuple(each for each in record.dropped if each.row < shortened.rows))


def _refuse_dropped(record: Record, rows: int | None, on_bad: str) -> None:
    """Raise the error of an image that the cache was made without, for a user who refuses bad images."""
    if on_bad == "refuse":
        for each in record.dropped:
            if rows is None or each.row < rows:
                raise UserError(each.reason)


def _refuse_empty(record: Record, spec: str, source: Source, split: str) -> None:
    if not record.rows:
        if not record.dropped:
            raise no_images(spec, source, split)
        why = record.dropped[0].reason.rstrip(".")
        raise UserError(f"data '{spec}': expected at least one good picture, found none (the first: {why}).")
