"""Rows of the files people keep data in: JSON lines, JSON, CSV, Parquet, also compressed; one row at a time."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stabledllm.data.compressed import COMPRESSIONS, opened
from stabledllm.data.json_files import json_rows
from stabledllm.errors import UserError
from stabledllm.tasks.files import parse_object
from stabledllm.tasks.text_files import lines

PLAIN = (".jsonl", ".ndjson", ".json", ".csv")
ENDINGS = (*PLAIN, *(plain + packed for plain in PLAIN for packed in COMPRESSIONS), ".parquet")
"""The endings of files that can be read, in lower case."""
_OF_JSON = (str, int, float, type(None))
_HINTS = {".txt": "; plain text to pre-train on is text:PATH", ".tsv": "; write it with commas, as .csv"}
_BATCH = 256
"""Rows of a Parquet file that are in memory at once."""


class Origin(NamedTuple):
    """Where a row stands: its file, or the hub's data set, and its line (from 1) or its index (from 0)."""

    file: str
    row: int
    is_line: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.row}" if self.is_line else f"{self.file} row {self.row}"


Rows = Iterator[tuple[Origin, dict]]


def ending_of(path: Path | str) -> str:
    """The ending of :data:`ENDINGS` that a file's name has; empty where it has none."""
    name = str(path).lower()
    return max((ending for ending in ENDINGS if name.endswith(ending)), key=len, default="")


def rows_in(path: Path, *, as_lines: bool = False, skip: int = 0) -> Rows:
    """The rows of one file with their origins; apart from ``.json`` no file is whole in memory.

    Args:
        as_lines: a file without a known ending is JSON lines.
        skip: number of first rows, which were read before, to leave out; lines and Parquet's groups are not parsed.

    Raises:
        UserError: a file that cannot be read, is broken or cut short, holds no row, or whose ending is not known; the
            message names the file and the row.
    """
    ending = ending_of(path)
    if ending == ".parquet":
        rows = _parquet_rows(path, skip)
    elif not ending and not as_lines:
        found = f"'{path.suffix}'" if path.suffix else "a name without an ending"
        raise UserError(f"{path}: expected a file that ends in {', '.join((*PLAIN, '.parquet'))} "
                        f"(or in {' or '.join(COMPRESSIONS)} after the first four), found {found}"
                        f"{_HINTS.get(path.suffix, '')}.")  # fmt: skip
    else:
        rows = _text_rows(path, ending or ".jsonl", skip)
    empty = not skip
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: expected at least one row, found an empty file.")


def _text_rows(path: Path, ending: str, skip: int) -> Rows:
    with opened(path) as file:
        if ending.startswith(".csv"):
            yield from islice(_csv_rows(file, str(path)), skip, None)
        elif ending.startswith(".json") and not ending.startswith(".jsonl"):
            for row, is_line, record in islice(json_rows(file, str(path)), skip, None):
                yield Origin(str(path), row, is_line), record
        else:
            yield from _line_rows(file, str(path), skip)


def _line_rows(file: BinaryIO, name: str, skip: int) -> Rows:
    filled = ((number, line) for _, number, line in lines(file, name) if line.strip())
    for number, line in islice(filled, skip, None):
        origin = Origin(name, number, is_line=True)
        yield origin, parse_object(line, str(origin))


def _csv_rows(file: BinaryIO, name: str) -> Rows:
    """The rows of a CSV with a header; an empty cell is a key that is not there."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = next(reader, [])
        if twice := sorted({key for key in header if header.count(key) > 1}):
            raise UserError(f"{name}: expected every column once, found {twice[0]!r} twice.")
        for number, cells in enumerate(row for row in reader if row):
            origin = Origin(name, number)
            if len(cells) != len(header):
                raise UserError(f"{origin}: expected {len(header)} cells as in the header, found {len(cells)}.")
            yield origin, {key: cell for key, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise UserError(f"{name}: expected CSV, found a broken line {reader.line_num} ({error}).") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: expected UTF-8 text, found a byte that is not after line {reader.line_num} ({error.reason})."
        ) from None


def _parquet_rows(path: Path, skip: int) -> Rows:
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}.")
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            f"{path}: expected the package 'pyarrow' to read Parquet, found none; pip install 'stabledllm[formats]'."
        ) from None
    first = begin = 0
    try:
        with ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            while first < len(sizes) and begin + sizes[first] <= skip:
                first, begin = first + 1, begin + sizes[first]
            batches = file.iter_batches(batch_size=_BATCH, row_groups=range(first, len(sizes)))
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in islice(enumerate(records, begin), skip - begin, None):
                yield Origin(str(path), number), without_nulls(record)
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{path}: expected a whole Parquet file, found a broken one ({reason}).") from None


def without_nulls(value: Any) -> Any:
    """The value without keys that hold null, since in a table every row has every key of every other row.

    What JSON cannot write, such as a time, is text.
    """
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value if isinstance(value, _OF_JSON) else str(value)
