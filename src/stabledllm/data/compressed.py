"""Files that may be compressed, read as a stream of bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stabledllm.errors import UserError
from stabledllm.tasks.text_files import open_binary

COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 17


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed where its name ends in ``.gz`` or ``.zst``.

    Raises:
        UserError: it cannot be read, or its compressed content is broken or cut short.
    """
    ending = path.suffix.lower()
    if ending not in COMPRESSIONS:
        with open_binary(path) as file:
            yield file
        return
    errors: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error)
    with open_binary(path) as packed:
        if ending == ".zst":
            errors = (*errors, _zstandard(path).ZstdError)
        reader = _ZstdReader(packed, _zstandard(path)) if ending == ".zst" else gzip.GzipFile(fileobj=packed)
        try:
            with io.BufferedReader(reader, _CHUNK) as file:
                yield file
        except errors as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(f"{path}: expected a whole {ending} file, found a broken one ({reason}).") from None


def _zstandard(path: Path):
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path}: expected the package 'zstandard' to read .zst, found none; pip install 'stabledllm[formats]'."
        ) from None
    return zstandard


class _ZstdReader(io.RawIOBase):
    """The content of a file's zstd frames. The package's own reader takes a file that is cut short for a whole one."""

    def __init__(self, packed: BinaryIO, zstandard):
        self._packed, self._new = packed, zstandard.ZstdDecompressor().decompressobj
        self._frame = None
        self._read, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content:
            self._read = self._read or self._packed.read(_CHUNK)
            if not self._read:
                if self._frame is not None:
                    raise EOFError("it ends before its end-of-stream marker")
                return 0
            self._frame = self._frame or self._new()
            self._content = memoryview(self._frame.decompress(self._read))
            self._read = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        taken = self._content[: len(buffer)]
        buffer[: len(taken)] = taken
        self._content = self._content[len(taken) :]
        return len(taken)
