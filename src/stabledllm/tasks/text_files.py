"""Reading text files as users have them: lines, byte order marks, and folders with links and endings in capitals."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from stabledllm.errors import UserError

LONGEST_LINE = 1 << 28
"""Number of bytes beyond which a line is no row of data."""
_OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, int, str]]:
    r"""The ``(offset, number, text)`` of every line; lines end with ``\n`` or ``\r\n`` and with nothing else.

    Characters that other programs take for the end of a line (U+2028, U+0085, a form feed, ``\r`` alone) are content.
    A byte order mark at the beginning is left out.

    Args:
        file: opened in binary mode. name: the file's name, for errors.

    Raises:
        UserError: bytes that are not UTF-8, a NUL byte, or a line that is too long; the message names the line.
    """
    offset, number = 0, 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{name}:{number}: expected a line of at most {LONGEST_LINE >> 20} MiB, found a longer one."
            )
        yield offset, number, decoded(_end_cut(line), name, number)
        offset += len(line)


def decoded(content: bytes, name: str, line: int | None = None, what: str = "UTF-8 text") -> str:
    """Decode UTF-8, without a byte order mark at its beginning.

    Args:
        name: the file's name, for errors. line: number of the line that the content is; None for the whole file.
        what: what error messages say was expected.

    Raises:
        UserError: bytes that are not UTF-8.
    """
    where = "" if line is None else f" in line {line}"
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise UserError(f"{name}: expected {what}, found {encoding}; save the file as UTF-8.")
    if b"\0" in content:
        raise UserError(f"{name}: expected {what}, found a NUL byte{where}, as in UTF-16 or in what is no text.")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: expected {what}, found a byte that is not{where} ({error.reason}).") from None


def read_text(path: Path) -> str:
    r"""Read a whole file as text, with ``\r\n`` as ``\n``.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    return decoded(read_bytes(path), str(path)).replace("\r\n", "\n")


def read_bytes(path: Path) -> bytes:
    """Read the bytes of a whole file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read, found: {error.strerror}.") from None


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        UserError: it does not exist, is a folder, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}.")
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read, found: {error.strerror}.") from None


def files_below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files with one of the endings, in lower or upper case, in a folder and those below it; sorted.

    Links to files and folders are followed, and no folder is entered twice.

    Raises:
        UserError: a folder that cannot be read, or a link with one of the endings that leads nowhere.
    """
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in (Path(place, name) for name in names if name.lower().endswith(tuple(endings))):
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path}: expected a file, found a link that leads nowhere.")
            if path.is_file():
                files.append(path)
    return sorted(files)


def has_ending(path: Path, *endings: str) -> bool:
    """Whether a file's name has one of the endings, in lower or upper case."""
    return path.suffix.lower() in endings


def _end_cut(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: expected a folder that can be read, found: {error.strerror}.") from None
