"""Refuses a process that ``accelerate launch`` silently started alone where several were asked for."""

from __future__ import annotations

import itertools
import os

import psutil

from stabledllm.errors import UserError


def refuse_lone_process() -> None:
    """Refuse to run alone where ``accelerate launch`` was asked for several processes.

    On CPUs, or without ``--multi_gpu``, it starts one process however many were asked for.

    Raises:
        UserError: several processes were asked for and this is the only one.
    """
    asked = asked_of_launcher()
    if asked > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"launch: expected {asked} processes, as --num_processes asks, found one: write --multi_gpu beside it, or "
            f"--config_file ddp.yaml ('stabledllm cp accelerate/ddp'); on CPUs 'torchrun --nproc-per-node {asked}'."
        )


def asked_of_launcher() -> int:
    """``num_processes`` of the ``accelerate launch`` that started this process; 1 where none did or it names none.

    No variable of the environment holds the number, so it is read from the launcher's command line.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return 1
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    if not any("accelerate" in word for word in words[:3]):
        return 1
    words = [word.replace("-", "_") for word in " ".join(words).replace("=", " ").split()]
    for name, value in itertools.pairwise(words):
        if name == "__num_processes" and value.isdigit():
            return int(value)
    return 1
