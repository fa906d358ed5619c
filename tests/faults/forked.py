"""The command line in a child of this process, which has its imports done: tenths of a second, and it may be killed."""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HANGS = 124
"""The code of one that was ended for taking too long, as timeout(1) has it."""


@dataclass(frozen=True)
class Ended:
    """What is left of a command."""

    code: int
    """Its exit code; -N where signal N ended it."""
    printed: str
    """Standard output and error together."""

    @property
    def last(self) -> str:
        return (self.printed.strip().splitlines() or [""])[-1]


_IMPORTED = (
    "peft", "transformers.models.auto.modeling_auto", "stabledllm.cli.main", "stabledllm.cli.quickstart_jobs",
    "stabledllm.data.images", "stabledllm.lab.decompose", "stabledllm.evaluation.run", "stabledllm.experiment.run",
    "stabledllm.images.encoding", "stabledllm.models.adapters", "stabledllm.reports.html", "stabledllm.training.run",
)  # fmt: skip


def warm() -> None:
    """Import what the commands import, so that their children need not."""
    for name in _IMPORTED:
        importlib.import_module(name)


def command(
    *arguments: str, cwd: Path, seconds: float = 60, before: Callable[[], object] = lambda: None, stdin: bytes = b""
) -> Ended:
    """Run ``stabledllm ARGUMENTS`` in a folder; ``before`` is called in the child first."""
    with _piped(stdin) as typed:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _become(arguments, cwd, before, typed, write)
    os.close(write)
    printed, deadline = bytearray(), time.monotonic() + seconds
    hangs = False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            hangs = True
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(read, 1 << 16)
        if not part:
            break
        printed += part
    os.close(read)
    _, status = os.waitpid(child, 0)
    return Ended(HANGS if hangs else os.waitstatus_to_exitcode(status), printed.decode(errors="replace"))


@contextmanager
def _piped(content: bytes) -> Iterator[int]:
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    try:
        yield read
    finally:
        os.close(read)


def _become(arguments, cwd: Path, before: Callable[[], object], typed: int, write: int) -> None:
    """The child's life; it never returns into its parent's code."""
    code = 70
    try:
        os.dup2(typed, 0)
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        sys.argv = ["stabledllm", *arguments]
        before()
        from stabledllm.cli.main import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
