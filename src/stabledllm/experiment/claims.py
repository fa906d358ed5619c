"""Who does which run: any number of processes, on any machines that share the folder, and never two at one.

A run is done by whoever holds the lock of its folder (:mod:`stabledllm.runtime.locks`).
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from pathlib import Path

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import Diverged, UserError
from stabledllm.runtime import locks
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.locks import CLAIM, claimed
from stabledllm.training.diverged import diverged

FAILED, RUN = "failed.json", "run.json"


def finished(run: TrainSettings) -> bool:
    """Whether a run's ``run.json`` is there, which is written last; a diverged run is finished."""
    return (Path(run.out) / RUN).is_file()


def divergence(run: TrainSettings) -> str | None:
    """How a finished run diverged, or None."""
    told = diverged(read_json(Path(run.out) / RUN)) if finished(run) else None
    return f"at step {told['step']}: {told['what']}" if told else None


def is_free(run: TrainSettings) -> bool:
    """Whether nobody holds a run's lock."""
    return locks.is_free(Path(run.out))


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
    found = locks.claim_of(Path(run.out) / CLAIM)
    return found is not None and (found.get("host"), found.get("pid")) == (socket.gethostname(), pid)


def claimant(run: TrainSettings) -> dict | None:
    """Who says to be at a run; None where nobody does, or a process of this machine that is no more."""
    return locks.claimant(Path(run.out))
