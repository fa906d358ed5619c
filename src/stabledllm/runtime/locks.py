"""One command at a time writes to an output; a second one is told who is at it.

An output is written by whoever holds its lock. The operating system lets go of a lock when its process ends, however it
ends, so that what a killed command wrote to is free at once. Over several machines the output must be on a file system
whose locks hold across them (NFS 4, Lustre with flock).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from stabledllm.errors import UserError
from stabledllm.runtime.failures import working_on
from stabledllm.runtime.files import write_json
from stabledllm.runtime.folders import is_alive, is_there, remove_empty, sweep, writable_folder
from stabledllm.runtime.launched import is_main_process

_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_POLL = 0.1
"""Seconds between two tries for a lock that is waited for."""
LOCK, CLAIM = "run.lock", "claim.json"
_held: set[tuple[int, Path]] = set()
"""Of this process: a command that another one calls, as experiment does train, writes under its caller's lock."""


@contextmanager
def writing(folder: str | Path, command: str) -> Iterator[None]:
    """Within, this process alone writes in ``folder``, which can be written and is free of what killed commands left.

    Of several ranks the first one takes the lock for all. A folder made for it goes again where nothing was written.

    Raises:
        UserError: another command is at it, or it cannot be written or locked.
    """
    folder = Path(folder)
    if not is_main_process() or _is_ours(folder):
        yield
        return
    made = writable_folder(folder)
    try:
        with claimed(folder, command) as mine:
            if not mine:
                raise UserError(busy(folder))
            yield
    finally:
        with suppress(OSError):
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
        remove_empty(made)


def in_its_folder(command: str) -> Callable[[Callable], Callable]:
    """Decorates what takes settings with ``out`` first: it runs under the lock of that folder, see :func:`writing`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def alone(settings, *args, **kwargs):
            with writing(settings.out, command):
                return function(settings, *args, **kwargs)

        return alone

    return decorate


@contextmanager
def writing_beside(out: str | Path, command: str, *, folder: bool = False) -> Iterator[None]:
    """As :func:`writing`, for an output that comes to be at once under its name, a file or a whole folder.

    Its lock lies beside it and goes when the output is there.

    Raises:
        UserError: as for :func:`writing`; a folder where a file is to be.
    """
    if is_there(Path(out)) and Path(out).is_dir() and not folder:
        raise UserError(f"{out}: expected a file to write, found a folder.")
    lock, claim = _beside(out)
    made = writable_folder(lock.parent)
    try:
        with _locked(lock, claim, command, out) as mine:
            if not mine:
                raise UserError(busy(out, claim))
            sweep(lock.parent)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        remove_empty(made)


def is_busy_beside(out: Path) -> bool:
    """Whether an output is being written under :func:`writing_beside`."""
    lock, _ = _beside(out)
    if not lock.exists():
        return False
    held = _acquired(lock, out)
    if held is not None:
        held.release()
    return held is None


@contextmanager
def claimed(folder: Path, command: str = "train") -> Iterator[bool]:
    """Within, whether this process holds the folder's lock; without waiting for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, folder / CLAIM, command, folder) as mine:
        if mine:
            sweep(folder, below=True)
        yield mine


@contextmanager
def waiting_for(path: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Within, this process holds the lock at ``path``, for which it waits: it uses what the other one makes.

    Raises:
        UserError: a file system without locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquired(path, path.parent)
    if lock is None:
        say(f"{path.parent}: waiting for another process that makes what this one needs")
    while lock is None:
        time.sleep(_POLL)
        lock = _acquired(path, path.parent)
    try:
        with working_on(path.parent):
            yield
    finally:
        lock.release()


def is_free(folder: Path) -> bool:
    """Whether nobody holds a folder's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder / LOCK, folder)
    if lock is not None:
        lock.release()
    return lock is not None


def claim_of(path: Path) -> dict | None:
    """What a claim says: host, pid, when it started, and the command; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def claimant(folder: Path) -> dict | None:
    """Who says to be at a folder; None where nobody does, or a process of this machine that is no more."""
    found = claim_of(folder / CLAIM)
    if found is None or found.get("host") != socket.gethostname():
        return found
    pid = found.get("pid")
    return found if isinstance(pid, int) and is_alive(pid) else None


def busy(out: Path, claim: Path | None = None) -> str:
    """The sentence of the one that comes second."""
    found = claim_of(claim or out / CLAIM) or {}
    who = f"'{found['command']}'" if "command" in found else "another command"
    since = found.get("started")
    told = [f"process {found['pid']} on {found['host']}"] if {"pid", "host"} <= found.keys() else []
    if isinstance(since, int | float):
        told.append(f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}")
    at = f" ({', '.join(told)})" if told else ""
    return (
        f"{out}: expected an output that no other command is writing, found {who} at it{at}; wait until it has ended, "
        f"or write elsewhere."
    )


def _beside(out: str | Path) -> tuple[Path, Path]:
    """The lock and the claim of an output that lie beside it."""
    whole = Path(os.path.realpath(out))
    name = whole.name.encode()[:120].decode(errors="ignore")
    return whole.with_name(f".{name}.lock"), whole.with_name(f".{name}.claim.json")


def _is_ours(folder: Path) -> bool:
    return (os.getpid(), Path(os.path.realpath(folder))) in _held


@contextmanager
def _locked(path: Path, claim: Path, command: str, out: Path) -> Iterator[bool]:
    lock = _acquired(path, out)
    if lock is None:
        yield False
        return
    key = (os.getpid(), Path(os.path.realpath(out)))
    _held.add(key)
    try:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "command": command}
        with working_on(out):
            write_json(claim, about)
            yield True
    finally:
        _held.discard(key)
        with suppress(OSError):
            claim.unlink(missing_ok=True)
        lock.release()


def _acquired(path: Path, out: Path) -> FileLock | None:
    """The lock, taken; None where another holds it.

    Raises:
        UserError: a file system without locks.
    """
    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lock.acquire(blocking=False)
    except Timeout:
        return None
    except NotImplementedError:
        raise _lockless(out) from None
    except OSError as error:
        if error.errno in _LOCKLESS:
            raise _lockless(out) from None
        raise
    if isinstance(lock, SoftFileLock):  # what filelock takes in its place outlives a kill
        lock.release()
        raise _lockless(out)
    return lock


def _lockless(out: Path) -> UserError:
    return UserError(f"{out}: expected a file system with locks, found one without; write to another and copy.")
