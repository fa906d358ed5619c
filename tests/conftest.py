"""What makes the suite shorter: the order in which files run, and a garbage collector that passes over modules."""

from __future__ import annotations

import gc
import os

# Before torch is imported: a process that OpenMP has given threads cannot be forked safely, and many tests fork.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONG = ("slow", "processes")


def pytest_collection_modifyitems(items) -> None:
    """Files with long tests come first: at the end no core waits for another that has only just begun one."""
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in LONG)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Nothing imported so far is looked through again: the Trainer collects garbage in every run of a test, which
    takes as long as the rest of a run of a few steps, most of it among the modules of torch and transformers."""
    gc.collect()
    gc.freeze()
