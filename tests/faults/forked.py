"""The command line in a child of this process, which has its imports done: tenths of a second, and it may be killed."""

from __future__ import annotations

import importlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.checks.child import command_line, live

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

    def work() -> None:
        os.chdir(cwd)
        before()
        command_line(*arguments)

    with _piped(stdin) as typed:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            live(work, typed, write, write)
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
