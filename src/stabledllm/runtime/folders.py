"""Prepares folders for writing: checks them, sweeps what killed commands left, and makes whole folders at once."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.failures import sentence

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.tmp", re.DOTALL)
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")
_STAMP = "stabledllm.json"
_FOREIGN = 24 * 3600.0
"""Seconds after which another machine's temporary file is taken for dead: writing takes seconds, and that machine's
processes cannot be looked up."""
_PROBE = b"0" * 4096


def temporary_beside(path: Path) -> Path:
    """The hidden name under which this process writes the file or folder that becomes ``path``."""
    return path.with_name(f".{short_name(path.name)}.{_host()}.{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a name was made by :func:`temporary_beside`, in any process."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_leftover(path: Path) -> bool:
    """Whether a name is a temporary one, of this library or of safetensors."""
    return is_temporary(path) or _OF_SAFETENSORS.fullmatch(path.name) is not None


def sweep(folder: Path, *, below: bool = False) -> None:
    """Remove the temporary files and folders in ``folder`` whose process has ended.

    Args:
        below: also sweep the folders in it, except stamped ones, whose stamp lists their files. Only for a folder that
            no other process writes to, since the temporary names of safetensors do not say whether theirs is alive.
    """
    for path in _listed(folder):
        if below and path.is_dir() and not (path / _STAMP).exists():
            sweep(path)
            for leftover in filter(lambda inner: _OF_SAFETENSORS.fullmatch(inner.name), _listed(path)):
                leftover.unlink(missing_ok=True)
        if not is_temporary(path):
            continue
        with suppress(OSError):
            if _is_dead(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def writable_folder(path: str | Path) -> list[Path]:
    """Make a folder if it is missing, check that it can be written to, and return the folders made, innermost first.

    It writes and removes a small file. Call it before the work, at whose end it would be too late to learn this.

    Raises:
        UserError: it is a file, cannot be written (permission, read-only file system, full disk), has too long a name,
            or is reached by links that lead in a circle.
    """
    path = Path(path)
    if is_there(path) and not path.is_dir():
        raise UserError(f"{path}: expected a folder, found a file.")
    made: list[Path] = []
    try:
        missing = [place for place in (path, *path.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            made.insert(0, place)
        probe = temporary_beside(path / "probe")
        try:
            with probe.open("wb") as file:
                file.write(_PROBE)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        remove_empty(made)
        error.filename, error.filename2 = str(path), None
        raise UserError(sentence(error)) from None
    return made


def is_there(path: Path) -> bool:
    """Whether a file or folder of that name exists.

    Raises:
        UserError: the file system does not take the name, or it is a link to nothing.
    """
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path}: expected a file or folder, found a link to nothing.") from None
        return False
    except (OSError, ValueError) as error:
        message = sentence(error, path) or f"{path!r}: expected a name, found one that the file system does not take."
        raise UserError(message) from None
    return True


def refuse_used(out: Path) -> None:
    """Refuse a folder that is to be made anew and has something in it, or is a file.

    Raises:
        UserError: names it.
    """
    if is_there(out) and not out.is_dir():
        raise UserError(f"{out}: expected a new folder, found a file; name another folder.")
    if is_there(out) and any(out.iterdir()):
        raise UserError(f"{out}: expected a new folder, found one that is there already; name another, or remove it.")


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty, in the given order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside ``out`` to write in, which becomes ``out`` at the end, or is removed on an error.

    Where ``out`` holds files already, each new file replaces the one of the same name.
    """
    out = Path(out)
    temporary = temporary_beside(out.resolve())
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        if out.is_dir() and any(out.iterdir()):
            for path in sorted(temporary.iterdir()):
                path.replace(out / path.name)
        else:
            temporary.replace(out.resolve())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _is_dead(path: Path) -> bool:
    pid = int(_TEMPORARY.fullmatch(path.name)["pid"])
    if not path.name.endswith(f".{_host()}.{pid}.tmp"):
        return time.time() - path.lstat().st_mtime > _FOREIGN
    return pid == os.getpid() or not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process with that number is running on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:63]


def short_name(name: str) -> str:
    """The name cut so short that the temporary name made of it is not too long for a file system."""
    return name.encode()[:120].decode(errors="ignore")
