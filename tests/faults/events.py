"""Faults at the n-th thing that a command does to the file system."""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

_CHANGING = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "symlink", "link", "truncate", "fsync")
"""Functions of ``os`` that change the file system."""
_NEEDS_ROOM = ("mkdir", "symlink", "link", "fsync")
"""Those that a full disk refuses."""


@dataclass
class Faults:
    """Counts what is done below a folder, and does ``kind`` from event ``at`` on.

    Args:
        kind: ``kill`` before the event, ``torn`` in the middle of it where it is a write, or ``full``: from then on no
            room is left on the disk.
        after: kill at the first event that finds this file.
    """

    folder: Path
    at: int = 0
    kind: str = "kill"
    after: Path | None = None
    _seen: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))

    @property
    def seen(self) -> int:
        """Events so far, also those of a child, however it ended."""
        return int.from_bytes(self._seen[:8], "little")

    def install(self) -> None:
        """Patch this process, which does not come back from it."""
        for name in _CHANGING:
            setattr(os, name, partial(self._call, name, getattr(os, name)))
        real = io.open
        builtins.open = io.open = partial(self._open, real)

    def happens(self, name: str, torn: Callable[[], object] = lambda: None, path: object = None) -> None:
        """One event; what happens at it may be the last thing that happens."""
        self._seen[:8] = (self.seen + 1).to_bytes(8, "little")
        if self.after is not None and name != "open" and self.after.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.at or self.seen < self.at:
            return
        if self.kind == "full":
            if name in ("open", "write", *_NEEDS_ROOM):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if path is None else [path]))
        elif self.seen == self.at:
            if self.kind == "torn":
                torn()
            os.kill(os.getpid(), signal.SIGKILL)

    def _call(self, name: str, function: Callable, *args, **kwargs):
        if name == "fsync" or self._is_below(args[0], kwargs):
            self.happens(name, path=None if name == "fsync" else args[0])
        return function(*args, **kwargs)

    def _open(self, real: Callable, file, mode="r", *args, **kwargs):
        if not set(mode) & set("wax+") or isinstance(file, int) or not self._is_below(file, kwargs):
            return real(file, mode, *args, **kwargs)
        self.happens("open", path=file)
        return _Written(real(file, mode, *args, **kwargs), self)

    def _is_below(self, path, kwargs: dict) -> bool:
        if kwargs.get("dir_fd") is not None:  # of rmtree, which walks down from a folder that is below
            return True
        return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.folder)


class _Written:
    """A file whose writes are events."""

    def __init__(self, file, faults: Faults):
        self._file, self._faults = file, faults

    def write(self, content):
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._faults.happens("write", half)
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __iter__(self):
        return iter(self._file)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def files_no_larger(size: int, *, kill: bool) -> None:
    """In this process no file grows beyond ``size`` bytes: the write fails, or ends the process, in any library."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
