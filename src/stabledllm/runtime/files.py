"""Writes files so that a killed program leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stabledllm.errors import UserError
from stabledllm.runtime.failures import sentence
from stabledllm.runtime.folders import is_temporary, temporary_beside
from stabledllm.runtime.secrets import hidden


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; a lone surrogate, which UTF-8 lacks, becomes its JSON escape."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a file as :func:`writing` does, whole or not at all."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write bytes to, which becomes ``path`` at the end.

    It has a temporary name beside ``path`` and is flushed to disk before it is renamed; if something goes wrong it is
    removed. A device or a pipe is written to and stays what it is. An error names ``path``.
    """
    with naming(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def copy(source: Path, path: Path) -> None:
    """Copy a small file, whole or not at all."""
    with reading(source):
        content = source.read_bytes()
    write_bytes(path, content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all; NaN and infinity become null, and secrets are hidden."""
    write_text(path, json.dumps(_plain(hidden(value)), indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While this context is open, errors of the file system name ``path`` instead of a temporary name or nothing."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | bytes) else None
        if error.errno is not None and (named is None or is_temporary(Path(os.fsdecode(named)))):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While this context is open, errors of the readers of any kind of file become a sentence that names ``path``.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (message := sentence(error, path)) is None:
            raise
        raise UserError(message) from None


def read_json(path: Path, schema: str | None = None) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: the file is missing, is no JSON object, or has another schema than ``schema``.
    """
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path}: expected a file, found nothing.")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected JSON, found something broken ({error}).") from None
    own_schema = value.get("schema") if isinstance(value, dict) else None
    if schema and own_schema != schema:
        raise UserError(f"{path}: expected schema '{schema}', found {own_schema!r}.")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
