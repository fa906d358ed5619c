"""Makes runs in several processes at once; the numbers of a run do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.errors import UserError
from stabledllm.experiment.board import Board
from stabledllm.experiment.claims import attempt, failure, finished, is_free, record_failure, was_at
from stabledllm.experiment.states import OVER
from stabledllm.training.run import train
from stabledllm.training.screen import QUIET

POLL = 0.5
"""Seconds between two checks of the workers and their runs."""
START = "spawn"
"""How a worker starts: afresh, since threads and devices of this process do not survive a fork."""
_loaded: dict[str, DataBundle] = {}
"""The data that this process has loaded, since all runs of an experiment share them."""


def train_all(
    planned: list[TrainSettings],
    jobs: int,
    board: Board,
    *,
    devices: Sequence[str] = (),
    wait: bool = True,
    ended: Callable[[], None] = lambda: None,
) -> None:
    """Train the runs that are neither finished nor claimed, ``jobs`` at a time; a worker that dies fails its run only.

    Args:
        devices: accelerators, dealt to the workers; without them each gets an equal share of the threads.
        wait: whether to wait for runs that other processes are making, until all have finished or failed.
        ended: called whenever a run has ended.
    """
    workers: dict[int, BaseProcess] = {}
    try:
        _train_all(planned, jobs, board, workers, devices=devices, wait=wait, ended=ended)
    except BaseException:  # no worker may outlive this process, which started them and would wait for them
        for worker in workers.values():
            worker.terminate()
        raise


def _train_all(
    planned: list[TrainSettings],
    jobs: int,
    board: Board,
    workers: dict[int, BaseProcess],
    *,
    devices: Sequence[str],
    wait: bool,
    ended: Callable[[], None],
) -> None:
    threads = max(1, torch.get_num_threads() // jobs)
    done = 0
    while True:
        states = board.update()
        over = [s for s in states if s.kind in (*OVER, "failed")]
        if len(over) > done:
            done = len(over)
            ended()
        _record_dead_workers(workers, planned)
        if len(over) == len(planned):
            break
        idle = [slot for slot in range(jobs) if slot not in workers]
        free = sum(is_free(s.run) for s in states if s.kind == "waiting") if idle else 0
        for slot in idle[:free]:
            workers[slot] = _start(planned, slot, threads, devices)
        if not workers and not free and not wait:
            break
        time.sleep(POLL)
    for worker in workers.values():
        worker.join()


def _start(planned: list[TrainSettings], slot: int, threads: int, devices: Sequence[str]) -> BaseProcess:
    values = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads)}
    if devices:
        values["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    with _environment(values):
        worker = multiprocessing.get_context(START).Process(target=_work, args=(planned, os.getpid()))
        worker.start()
    return worker


def _work(planned: list[TrainSettings], parent: int) -> None:
    """Make free runs until there are none left, or the parent process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every worker, but the parent ends them
    for run in planned:
        if os.getppid() != parent:
            return
        attempt(run, train_here)


def _record_dead_workers(workers: dict[int, BaseProcess], planned: list[TrainSettings]) -> None:
    """Record the run that a dead worker was making as failed.

    Raises:
        UserError: the worker died before it took a run, so that the next one would die as well.
    """
    for slot, worker in list(workers.items()):
        if worker.is_alive():
            continue
        del workers[slot]
        worker.join()
        if not worker.exitcode:
            continue
        died_at = [run for run in planned if not finished(run) and failure(run) is None and was_at(run, worker.pid)]
        if not died_at:
            raise UserError(f"experiment: a worker ended with exit code {worker.exitcode} before it took a run.")
        for run in died_at:
            record_failure(run, f"its process ended with exit code {worker.exitcode}")


def train_here(settings: TrainSettings) -> None:
    """Make one run in this process, which reads the data once for all runs of an experiment."""
    key = f"{settings.data.model_dump_json()} {settings.model} {settings.end_token} {settings.mask_token_id}"

    def data(tokenizer) -> DataBundle:
        if key not in _loaded:
            _loaded[key] = load_bundle(settings.data, tokenizer)
        return _loaded[key]

    train(settings, data=data, say=lambda _: None, screen=QUIET, untuned=False)


@contextmanager
def _environment(values: dict[str, str]):
    """While this context is open, the environment has these variables, for child processes to inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
