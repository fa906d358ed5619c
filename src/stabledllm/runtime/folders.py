"""Folders that are written: checked before the work, swept of what killed commands left, or whole at once."""

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
"""Seconds after which what another machine left is taken for dead: it writes for seconds, and cannot be asked."""
_PROBE = b"0" * 4096


def temporary_beside(path: Path) -> Path:
    """The hidden name under which this process writes what becomes ``path``."""
    return path.with_name(f".{_cut(path.name)}.{_host()}.{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a name is one of :func:`temporary_beside`, of whichever process."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_leftover(path: Path) -> bool:
    """Whether a name is one under which we or safetensors write what then gets its own."""
    return is_temporary(path) or _OF_SAFETENSORS.fullmatch(path.name) is not None


def sweep(folder: Path, *, below: bool = False) -> None:
    """Remove the temporary files and folders in ``folder`` whose process is no more.

    Args:
        below: in its folders too, but for those that are stamped: a stamp lists what is in them. Of a folder that only
            this process writes to, as what safetensors leaves behind says of no process that it is alive.
    """
    for path in _listed(folder):
        if below and path.is_dir() and not (path / _STAMP).exists():
            sweep(path)
            for left in filter(lambda found: _OF_SAFETENSORS.fullmatch(found.name), _listed(path)):
                left.unlink(missing_ok=True)
        if not is_temporary(path):
            continue
        with suppress(OSError):
            if _is_dead(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def writable_folder(path: str | Path) -> list[Path]:
    """Make a folder where there is none, and write and remove a small file in it; the folders made, innermost first.

    Called before the work, whose end would be too late to learn it.

    Raises:
        UserError: a file, no permission, a read-only file system, a full disk, a name that is too long, links that
            lead in a circle.
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
    """Whether there is something under a name.

    Raises:
        UserError: a name that the file system does not take, or that leads nowhere.
    """
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path}: expected a file or folder, found a link to nothing.") from None
        return False
    except (OSError, ValueError) as error:
        told = sentence(error, path) or f"{path!r}: expected a name, found one that the file system does not take."
        raise UserError(told) from None
    return True


def remove_empty(folders: list[Path]) -> None:
    """Remove those folders that are empty, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write in, which becomes ``out`` when all is in it and vanishes where that fails.

    Where ``out`` holds files already, each new one replaces its namesake.
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
    """Whether a process of this machine is running under that number."""
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


def _cut(name: str) -> str:
    """So short that a temporary name is a name wherever the name itself is."""
    return name.encode()[:120].decode(errors="ignore")
