"""Writing files so that a killed program leaves the old one or the new one, never half of one."""

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
    """As :func:`write_bytes`, in UTF-8; half a character, which UTF-8 has not, as its escape in JSON."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """As :func:`writing`, of what is in memory."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to: of a temporary name beside ``path``, flushed to disk and renamed at the end, or removed
    where something went wrong; a failure names ``path``."""
    with naming(path):
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
    """As :func:`write_text`; NaN and infinity become null, and secrets are hidden."""
    write_text(path, json.dumps(_plain(hidden(value)), indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object a line, as :func:`write_text`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, what the file system refuses names ``path``, not a temporary name or nothing."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | bytes) else None
        if error.errno is not None and (named is None or is_temporary(Path(os.fsdecode(named)))):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, what readers of any kind of file raise becomes a sentence that names ``path``.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (told := sentence(error, path)) is None:
            raise
        raise UserError(told) from None


def read_json(path: Path, schema: str | None = None) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: missing file, broken JSON, or another schema than asked.
    """
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path}: expected a file, found nothing.")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected JSON, found something broken ({error}).") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if schema and found != schema:
        raise UserError(f"{path}: expected schema '{schema}', found {found!r}.")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
