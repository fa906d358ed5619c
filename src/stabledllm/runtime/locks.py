"""Locks outputs, so that one command at a time writes to each; a second one is refused and told which one writes.

Only the process that holds an output's lock writes to it. The operating system releases a lock when its process ends,
however it ends, so that the output of a killed command is free at once. For use from several machines the output must
be on a file system whose locks hold across them (NFS 4, Lustre with flock).
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
from stabledllm.runtime.folders import is_alive, is_there, remove_empty, short_name, sweep, writable_folder
from stabledllm.runtime.launched import is_main_process

_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_POLL = 0.1
"""Seconds between two tries for a lock that is waited for."""
LOCK, CLAIM = "run.lock", "claim.json"
_held: set[tuple[int, Path]] = set()
"""Outputs locked by this process: a command that another calls, as experiment does train, uses its caller's lock."""


@contextmanager
def writing(folder: str | Path, command: str) -> Iterator[None]:
    """While this context is open, this process alone writes in ``folder``.

    The folder is writable and swept of what killed commands left. The first of several ranks takes the lock for all. A
    folder that was made here is removed again if nothing was written to it.

    Raises:
        UserError: another command is writing to it, or it cannot be written or locked.
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
    """Decorates a function of settings with ``out``, so that it runs under that folder's lock, see :func:`writing`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def alone(settings, *args, **kwargs):
            with writing(settings.out, command):
                return function(settings, *args, **kwargs)

        return alone

    return decorate


@contextmanager
def writing_beside(out: str | Path, command: str, *, folder: bool = False) -> Iterator[None]:
    """The same as :func:`writing`, for an output that is written whole: a file or a folder that appears at once.

    The lock lies beside the output and is removed at the end.

    Raises:
        UserError: as for :func:`writing`; or there is a folder where a file is to be written.
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
    acquired = _acquired(lock, out)
    if acquired is not None:
        acquired.release()
    return acquired is None


@contextmanager
def claimed(folder: Path, command: str = "train") -> Iterator[bool]:
    """Try for the folder's lock without waiting, and yield whether this process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, folder / CLAIM, command, folder) as mine:
        if mine:
            sweep(folder, below=True)
        yield mine


@contextmanager
def waiting_for(path: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Wait for the lock at ``path`` and hold it while this context is open.

    It is for work that one process does and all others wait to use.

    Raises:
        UserError: the file system has no locks.
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
    """The content of a claim file: host, pid, time of start, and command; None where it is missing or broken."""
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return claim if isinstance(claim, dict) else None


def claimant(folder: Path) -> dict | None:
    """The claim on a folder; None where there is none, or its process on this machine has ended."""
    claim = claim_of(folder / CLAIM)
    if claim is None or claim.get("host") != socket.gethostname():
        return claim
    pid = claim.get("pid")
    return claim if isinstance(pid, int) and is_alive(pid) else None


def busy(out: Path, claim: Path | None = None) -> str:
    """The sentence that refuses a second command, with the process that is writing to the output."""
    holder = claim_of(claim or out / CLAIM) or {}
    who = f"'{holder['command']}'" if "command" in holder else "another command"
    since = holder.get("started")
    details = [f"process {holder['pid']} on {holder['host']}"] if {"pid", "host"} <= holder.keys() else []
    if isinstance(since, int | float):
        details.append(f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}")
    at = f" ({', '.join(details)})" if details else ""
    return (
        f"{out}: expected an output that no other command is writing, found {who} at it{at}; wait until it has ended, "
        f"or write elsewhere."
    )


def _beside(out: str | Path) -> tuple[Path, Path]:
    """The paths of the lock and the claim that lie beside an output."""
    whole = Path(os.path.realpath(out))
    name = short_name(whole.name)
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
    """The lock at ``path``, acquired; None where another process holds it.

    Raises:
        UserError: the file system has no locks.
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
    if isinstance(lock, SoftFileLock):  # filelock's substitute for a real lock would outlive a kill
        lock.release()
        raise _lockless(out)
    return lock


def _lockless(out: Path) -> UserError:
    return UserError(f"{out}: expected a file system with locks, found one without; write to another and copy.")
