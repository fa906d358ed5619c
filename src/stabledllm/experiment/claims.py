"""Who does which run: any number of processes, on any machines that share the folder, and never two at one.

A run is done by whoever holds the lock of its folder. The operating system lets go of a lock when its process ends,
however it ends, so that a killed run is free at once. Over several machines the folder must be on a file system whose
locks hold across them (NFS 4, Lustre with flock).
"""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import Diverged, UserError
from stabledllm.files import read_json, write_json
from stabledllm.training.diverged import diverged

LOCK, CLAIM, FAILED, RUN = "run.lock", "claim.json", "failed.json", "run.json"


def finished(run: TrainSettings) -> bool:
    """Whether a run's ``run.json`` is there, which is written last; a diverged run is finished."""
    return (Path(run.out) / RUN).is_file()


def divergence(run: TrainSettings) -> str | None:
    """How a finished run diverged, or None."""
    told = diverged(read_json(Path(run.out) / RUN)) if finished(run) else None
    return f"at step {told['step']}: {told['what']}" if told else None


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Within, whether this process holds the folder's lock; without waiting for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        write_json(folder / CLAIM, {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()})
        yield True
    finally:
        (folder / CLAIM).unlink(missing_ok=True)
        lock.release()


def is_free(run: TrainSettings) -> bool:
    """Whether nobody holds a run's lock."""
    lock = FileLock(Path(run.out) / LOCK)
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        return False
    lock.release()
    return True


def failure(run: TrainSettings) -> str | None:
    """The sentence of a run that failed, or None."""
    path = Path(run.out) / FAILED
    return read_json(path)["error"] if path.is_file() else None


def record_failure(run: TrainSettings, error: str, details: str = "") -> None:
    """Note that a run failed; it is tried again when the experiment is started again."""
    write_json(Path(run.out) / FAILED, {"error": error, "details": details, "host": socket.gethostname()})


def forget_failures(planned: list[TrainSettings]) -> None:
    """Let failed runs be tried again."""
    for run in planned:
        (Path(run.out) / FAILED).unlink(missing_ok=True)


def attempt(run: TrainSettings, train: Callable[[TrainSettings], object]) -> bool:
    """Train a run unless it is finished, has failed, or is another's; whether it was this process's to do.

    What goes wrong is recorded in the run's folder and stops nobody else.
    """
    if finished(run) or failure(run) is not None:
        return False
    with claimed(Path(run.out)) as mine:
        if not mine or finished(run):
            return False
        try:
            train(run)
        except Diverged:  # its record is there: it is finished
            pass
        except UserError as error:
            record_failure(run, str(error))
        except Exception as error:  # a run's own mistake, or its machine's: the others go on
            record_failure(run, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", traceback.format_exc())
    return True


def was_at(run: TrainSettings, pid: int | None) -> bool:
    """Whether a process of this machine, dead or alive, was the last to claim an unfinished run."""
    found = _claim(run)
    return found is not None and (found.get("host"), found.get("pid")) == (socket.gethostname(), pid)


def claimant(run: TrainSettings) -> dict | None:
    """Who says to be at a run; None where nobody does, or a process of this machine that is no more."""
    found = _claim(run)
    if found is not None and found.get("host") == socket.gethostname():
        try:
            os.kill(int(found["pid"]), 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
    return found


def _claim(run: TrainSettings) -> dict | None:
    try:
        return json.loads((Path(run.out) / CLAIM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
