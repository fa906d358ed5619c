"""How many runs of an experiment go at the same time: one a GPU, or one a CPU thread where their memory allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.experiment.at_once import check_jobs
from stabledllm.models.shapes import known_shape
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import estimate

PROCESS = 1.0e9
"""Bytes that a process takes beside its model: Python, torch, transformers and the rows."""


@dataclass(frozen=True)
class SideBySide:
    """``jobs`` runs at a time, on ``devices`` (none: the CPU, whose threads they share equally)."""

    jobs: int
    devices: tuple[str, ...] = ()

    def sentence(self) -> str:
        """What is said before the runs begin."""
        if self.devices:
            return f"{self.jobs} runs at a time, on {len(self.devices)} accelerators"
        threads = max(1, torch.get_num_threads() // self.jobs)
        return f"{self.jobs} runs at a time, each with {threads} CPU thread{'s' if threads > 1 else ''}"


def side_by_side(runs: Sequence[TrainSettings], count: int, jobs: str, devices: Sequence[str]) -> SideBySide:
    """The number of runs at the same time, as it was asked for or as this machine allows.

    ``auto`` is one run a device where devices are named, one a GPU where there are several, and on a CPU one a
    thread: a small model gains more from a second run than from a second thread. Never more than there are runs, and
    on a CPU never more than fit its free memory; a model whose size is known only once it is loaded runs alone.

    Args:
        runs: one run of every method. count: the number of all runs.

    Raises:
        UserError: ``jobs`` is neither ``auto`` nor a whole number of at least 1.
    """
    if jobs != "auto":
        check_jobs(jobs)
        return SideBySide(int(jobs), tuple(devices))
    on_cpu = any(run.trainer.get("use_cpu") for run in runs)
    gpus = 0 if on_cpu else torch.cuda.device_count()
    if not devices and gpus > 1:
        devices = [str(number) for number in range(gpus)]
    if devices or gpus:
        return SideBySide(max(1, min(len(devices), count)), tuple(devices))
    return SideBySide(max(1, min(torch.get_num_threads(), count, _fitting(runs))))


def _fitting(runs: Sequence[TrainSettings]) -> int:
    shape = known_shape(runs[0].model)
    if shape is None:
        return 1
    each = PROCESS + max(estimate(run, shape, Layout()).needed for run in runs)
    return int(psutil.virtual_memory().available // each)
