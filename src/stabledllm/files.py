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
from stabledllm.secrets import hidden


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As :func:`writing`, of what is in memory."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to: of a temporary name beside ``path``, flushed to disk and renamed at the end, or removed
    where something went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_text`; NaN and infinity become null, and secrets are hidden."""
    write_text(path, json.dumps(_plain(hidden(value)), indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object a line, as :func:`write_text`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, schema: str | None = None) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: missing file, broken JSON, or another schema than asked.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found nothing.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number too long or nesting too deep
        raise UserError(f"{path}: expected JSON, found something broken ({error}).") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if schema and found != schema:
        raise UserError(f"{path}: expected schema '{schema}', found {found!r}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
