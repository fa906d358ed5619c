"""What makes the suite shorter: files compiled once, the order in which they run, a garbage collector that passes over
what lasts, and no waiting for the disk."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

# Before torch is imported: a process that OpenMP has given threads cannot be forked safely, and many tests fork.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _renew_threads() -> None:
    """Let torch find its pool of threads anew while a forked process has one thread: transformers loads weights in
    several, two of which at once would find the parent's pool and fail ("Invalid thread pool!", seen once)."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def _renew_bars() -> None:
    """Give progress bars a lock of this process's own: tqdm's default is shared with forked processes, so that one
    killed while it draws a bar would hold it for ever, and with it whatever the parent and its next forks load."""
    tqdm.set_lock(threading.RLock())


tqdm.monitor_interval = 0  # no thread that may hold the lock while a process is forked
_renew_bars()
os.register_at_fork(after_in_child=_renew_threads)
os.register_at_fork(after_in_child=_renew_bars)
# What is written outlives a killed process without it; only a power failure, which no test makes, takes what the system
# still holds. A small run waits for it a dozen times.
os.fsync = lambda descriptor: None

LONG = ("slow", "processes")
_now: Path | None = None
"""The file whose tests are running."""


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported while tests are collected stays compiled, even where PYTHONDONTWRITEBYTECODE says no: pytest
    works on every assertion of a file that it compiles, for a third of a short run, and the processes that tests start
    read the library from there. What a test writes and imports is compiled anew each time, as ever: a file of the same
    size, written again within a second, would pass for the one before."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before


def _has_long_tests(path: Path) -> bool:
    return "mark.long" in path.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config) -> bool | None:
    """Where folders are asked for their long tests alone, files without any are not even imported."""
    of_folders = all(Path(argument).is_dir() for argument in config.args)
    if config.option.markexpr == "long" and of_folders and collection_path.match("test_*.py"):
        return None if _has_long_tests(collection_path) else True
    return None


def pytest_collection_modifyitems(items) -> None:
    """Files with long tests come first: at the end no core waits for another that has only just begun one."""
    hidden = {item.path for item in items if item.get_closest_marker("long")}
    if hidden := [str(path) for path in hidden if not _has_long_tests(path)]:
        raise pytest.UsageError(f"expected 'mark.long' in each file with a long test, found none in {hidden}")
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in LONG)}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """What is there when a file begins is not looked through again: the Trainer collects garbage in every run of a
    test, which takes as long as the rest of a run of a few steps, most of it among the modules of torch and
    transformers, and of what earlier files imported."""
    global _now
    if item.path != _now:
        _now = item.path
        gc.collect()
        gc.freeze()
