"""Divides runs among any number of processes, on any machines that share the folder; never two work on one run.

A run is done by the process that holds the lock of its folder (:mod:`stabledllm.runtime.locks`).
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
    """Whether a run's ``run.json``, which is written last, is there; a diverged run counts as finished."""
    return (Path(run.out) / RUN).is_file()


def divergence(run: TrainSettings) -> str | None:
    """The step and the reason at which a finished run diverged, or None."""
    end = diverged(read_json(Path(run.out) / RUN)) if finished(run) else None
    return f"at step {end['step']}: {end['what']}" if end else None


def is_free(run: TrainSettings) -> bool:
    """Whether nobody holds a run's lock."""
    return locks.is_free(Path(run.out))


def failure(run: TrainSettings) -> str | None:
    """The error of a run that failed, or None."""
    path = Path(run.out) / FAILED
    return read_json(path)["error"] if path.is_file() else None


def record_failure(run: TrainSettings, error: str, details: str = "") -> None:
    """Write that a run failed; it is tried again when the experiment is started again."""
    write_json(Path(run.out) / FAILED, {"error": error, "details": details, "host": socket.gethostname()})


def forget_failures(planned: list[TrainSettings]) -> None:
    """Delete the records of failures, so that the runs are tried again."""
    for run in planned:
        (Path(run.out) / FAILED).unlink(missing_ok=True)


def attempt(run: TrainSettings, train: Callable[[TrainSettings], object]) -> bool:
    """Train a run unless it is finished, has failed or is claimed elsewhere; return whether this process tried it.

    An error is recorded in the run's folder and stops no other run.
    """
    if finished(run) or failure(run) is not None:
        return False
    with claimed(Path(run.out)) as mine:
        if not mine or finished(run):
            return False
        try:
            train(run)
        except Diverged:  # its record is written: it counts as finished
            pass
        except UserError as error:
            record_failure(run, str(error))
        except Exception as error:  # a bug or a fault of the machine: the other runs go on
            record_failure(run, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", traceback.format_exc())
    return True


def was_at(run: TrainSettings, pid: int | None) -> bool:
    """Whether a process of this machine, dead or alive, was the last to claim an unfinished run."""
    claim = locks.claim_of(Path(run.out) / CLAIM)
    return claim is not None and (claim.get("host"), claim.get("pid")) == (socket.gethostname(), pid)


def claimant(run: TrainSettings) -> dict | None:
    """The claim on a run; None where there is none, or its process on this machine has ended."""
    return locks.claimant(Path(run.out))
