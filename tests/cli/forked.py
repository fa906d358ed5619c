"""Processes forked from this one: with their imports done, for which a new interpreter takes seconds; to be killed.

Tests that are about the start of the program take a new interpreter (:mod:`tests.cli.runner`), and so does one of each
kind of test that kills or launches; the others take these.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from tests.checks.child import command_line, live
from tests.faults.forked import warm


class Forked:
    """A function in a process, and a process group, of its own.

    Args:
        work: what it does; the exit code is 0, that of its ``SystemExit``, or 70 after any other exception.
        cwd: the folder it works in.
        environment: variables beside those of this process.
    """

    def __init__(self, work: Callable[[], object], cwd: Path, environment: Mapping[str, str] | None = None):
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115, open as long as it runs
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, cwd, environment or {}, [stream.fileno() for stream in self._streams])

    def poll(self) -> int | None:
        """Its exit code, -N where signal N ended it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def ended(self, timeout: float = 240) -> subprocess.CompletedProcess:
        """Wait for its end: its code and what it printed.

        Raises:
            AssertionError: it took longer, and was killed.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout:.0f} s:\n{self._printed(1)[-2000:]}")
            time.sleep(0.005)
        return subprocess.CompletedProcess((), self.returncode, self._printed(0), self._printed(1))

    def until(self, reached: Callable[[], bool], timeout: float = 120) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: it ended before, or it never came to that.
        """
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.poll() is None, f"it ended with {self.returncode} first:\n{self._printed(1)[-2000:]}"
            assert time.monotonic() < deadline, f"not reached:\n{self._printed(1)[-2000:]}"
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill it and all that it started."""
        os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.002)

    def _printed(self, number: int) -> str:
        self._streams[number].seek(0)
        return self._streams[number].read().decode(errors="replace")


def command(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], object] = lambda: None,
) -> Forked:
    """``stabledllm ARGUMENTS``, running; ``before`` is called in its process first."""
    warm()

    def work() -> None:
        before()
        command_line(*arguments)

    return Forked(work, cwd, environment)


def ranks(start: Callable[[Mapping[str, str]], Forked], count: int = 2) -> list[Forked]:
    """``count`` processes that find each other by the variables that a launcher of torch sets."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def _become(work: Callable[[], object], cwd: Path, environment: Mapping[str, str], streams: list[int]) -> NoReturn:
    def placed() -> None:
        os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | dict(environment))
        os.chdir(cwd)
        _forget_who_it_was()
        work()

    os.setpgid(0, 0)
    live(placed, os.open(os.devnull, os.O_RDONLY), *streams)


def _forget_who_it_was() -> None:
    """What earlier tests of this process made accelerate believe about the number of ranks."""
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
