"""Disturb a command, run it again, and compare with one that nothing happened to."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.faults.cases import CASES, Case, found
from tests.faults.events import Faults, files_no_larger

KINDS = ("kill", "torn", "full")
SIZES = (0, 1, 100, 1000, 5000, 20_000, 60_000, 200_000, 400_000, 800_000)
"""Bytes beyond which no file may grow."""


@cache
def undisturbed(case: Case) -> tuple[dict, int]:
    """What a command leaves, and how many events it has."""
    folder = _folder(case)
    faults = Faults(folder)
    ended = case.run(folder, before=faults.install)
    assert ended.code == 0, ended.printed
    left = found(folder)
    shutil.rmtree(folder)
    return left, faults.seen


def disturbed_at(case: Case, kind: str, event: int) -> str:
    """What is wrong after a fault at an event and another run; empty where nothing is."""
    return _disturbed(case, lambda folder: Faults(folder, event, kind).install, kind == "full")


def disturbed_by_size(case: Case, size: int, *, kill: bool) -> str:
    """As :func:`disturbed_at`, for a limit on the size of files."""
    return _disturbed(case, lambda _: lambda: files_no_larger(size, kill=kill), told=not kill)


def _disturbed(case: Case, fault, told: bool) -> str:
    wanted, _ = undisturbed(case)
    folder = _folder(case)
    try:
        first = case.run(folder, before=fault(folder))
        if told and (first.code not in (0, 2) or "Traceback" in first.printed):
            return f"the fault ended it with code {first.code}:\n{_shown(first.printed)}"
        if told and first.code == 2 and not re.match(rf"stabledllm: (out\b|{folder}).*: expected ", first.last):
            return f"the fault's sentence names no path: {first.last}"
        again = case.run(folder)
        if again.code and not (case.once and again.code == 2 and "found one that is there already" in again.last):
            return f"the same command ended with {again.code} after it:\n{_shown(again.printed)}"
        left = found(folder)
        other = [name for name in wanted.keys() | left.keys() if wanted.get(name) != left.get(name)]
        return f"other files than undisturbed: {sorted(other)[:8]}" if other else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shown(printed: str) -> str:
    """The last call of ours and the last lines, which say most of a traceback."""
    lines = printed.strip().splitlines()
    ours = [line.strip() for line in lines if "/stabledllm/" in line][-2:]
    return "\n".join([*ours, *lines[-2:]])


def _folder(case: Case) -> Path:
    folder = Path(mkdtemp(prefix=f"faults-{case.name}-")).resolve()
    case.prepare(folder)
    return folder


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
