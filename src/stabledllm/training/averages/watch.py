"""Lets a Trainer keep averages of its weights: after every step, in every checkpoint, and in snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import TrainerCallback

from stabledllm.config.settings import AverageSettings
from stabledllm.errors import UserError
from stabledllm.runtime.folders import sweep
from stabledllm.training.averages.held import Averages
from stabledllm.training.averages.places import AVERAGES, snapshot_folder, snapshots_in
from stabledllm.training.averages.rules import rules_of
from stabledllm.training.devices import fsdp_version
from stabledllm.training.evaluating import EvaluatingTrainer


class AverageWatch(TrainerCallback):
    """Counts every step in the averages, and writes snapshots of those that others are rebuilt from.

    Args:
        trainer: whose weights. averages: which it keeps. snapshots: their number over the whole run.
        checkpoint: the folder that the run goes on from, with the averages as they were.
    """

    def __init__(
        self, trainer: EvaluatingTrainer, averages: Averages, folder: Path, snapshots: int, checkpoint: Path | None
    ):
        self.trainer, self.averages, self.folder = trainer, averages, folder
        self.snapshots, self.checkpoint = snapshots, checkpoint
        self.of_powers = [name for name, rule in averages.rules.items() if rule.kind == "power"]

    def on_train_begin(self, args, state, control, **_):
        self.averages.attach(self.trainer.accelerator.unwrap_model(self.trainer.model))
        if state.global_step and self.checkpoint:
            self.averages.load(self.checkpoint / AVERAGES)
        if state.is_world_process_zero:  # those of steps that are made again, or of an earlier run
            for step, folder in snapshots_in(self.folder):
                if step > state.global_step:
                    shutil.rmtree(folder)
                else:
                    sweep(folder)  # what a kill left of a file that was being written

    def on_step_end(self, args, state, control, **_):
        step, steps = state.global_step, state.max_steps
        self.averages.update(step, steps)
        if step * self.snapshots // steps > (step - 1) * self.snapshots // steps:
            self._snapshot(state)

    def on_train_end(self, args, state, control, **_):
        if self.snapshots and state.global_step:  # a run that a callback stops ends before its last snapshot
            self._snapshot(state)

    def _snapshot(self, state) -> None:
        folder = snapshot_folder(self.folder, state.global_step)
        self.averages.save(folder, self.of_powers, writes=state.is_world_process_zero)


def watch_averages(
    trainer: EvaluatingTrainer, settings: AverageSettings, folder: Path, checkpoint: Path | None
) -> None:
    """Let a trainer keep the averages that are asked for.

    Args:
        folder: the run's. checkpoint: the one that it goes on from.

    Raises:
        UserError: under DeepSpeed or the first version of FSDP, whose weights are not the model's own.
    """
    if not settings.count:
        return
    if trainer.is_deepspeed_enabled or fsdp_version(trainer) == 1:
        found = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP version 1"
        raise UserError(
            f"key 'average': expected whole weights on every device or FSDP version 2, found {found}; launch with "
            f"'stabledllm cp accelerate/fsdp2', or accelerate/ddp."
        )
    rules = rules_of(settings)
    trainer.averages = Averages(rules, on_cpu=settings.on_cpu)
    snapshots = settings.snapshots if settings.power else 0
    trainer.add_callback(AverageWatch(trainer, trainer.averages, folder, snapshots, checkpoint))
