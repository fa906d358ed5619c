"""Runs side by side in processes of their own; the numbers of a run do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import torch

from stabledllm.config.build import loading_options
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.models.loading import load_model
from stabledllm.training.run import train

_loaded: dict[str, DataBundle] = {}
"""The data of this process; every run of an experiment has the same."""


def train_all(planned: list[TrainSettings], jobs: int) -> Iterator[TrainSettings]:
    """Train every one of ``planned``, ``jobs`` at a time with an equal share of the threads; yields each as it ends.

    The first that fails stops the rest: those that have begun finish, none begins after it.
    """
    with _environment({"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}):
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        try:
            running = {pool.submit(_train, settings): settings for settings in planned}
            for done in as_completed(running):
                done.result()
                yield running[done]
        finally:
            pool.shutdown(cancel_futures=True)


def _train(settings: TrainSettings) -> None:
    key = f"{settings.data.model_dump_json()} {settings.model} {settings.end_token}"
    if key not in _loaded:
        _loaded[key] = load_bundle(settings.data, load_model(settings.model, **loading_options(settings)).tokenizer)
    train(settings, data=_loaded[key], say=lambda _: None)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that child processes inherit while they are started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
