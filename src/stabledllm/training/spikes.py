"""``spikes.jsonl`` in a run's folder: its outlier steps, whose gradient norm is far above the median before them.

A line holds ``step``, ``grad_norm`` (before clipping), ``median`` of the last steps' norms, ``loss`` of the step, the
newest ``checkpoint`` before it (None: there was none yet) and ``time``, in seconds since the epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from stabledllm.config.run_folder import REPLAYS, SPIKES, STAMP
from stabledllm.config.settings import SpikeSettings
from stabledllm.runtime.files import naming, write_jsonl
from stabledllm.training.checkpoints import in_order
from stabledllm.training.history import whole_lines
from stabledllm.training.trainer import MDMTrainer

LEAST = 10
"""Steps that a median is taken of at the least: the first norms of a run say little of the next."""


class NormWindow(TrainerCallback, ExportableState):
    """The gradient norms and losses of a run's last steps; its state is in every checkpoint."""

    def __init__(self):
        self.norms: list[float] = []
        self.losses: list[float] = []

    def state(self) -> dict:
        """The state from which the Trainer recreates this object at a checkpoint."""
        return {"args": {}, "attributes": {"norms": self.norms, "losses": self.losses}}

    def median(self) -> float | None:
        """The median norm of the last steps; None where there are too few of them."""
        return median(self.norms) if len(self.norms) >= LEAST else None

    def add(self, norm: float, loss: float, most: int) -> None:
        """Note a step, and forget those before the last ``most``."""
        self.norms, self.losses = [*self.norms, norm][-most:], [*self.losses, loss][-most:]


class SpikeWatch(TrainerCallback):
    """Writes every outlier step to ``spikes.jsonl``, and tells of one at most every ``window`` steps.

    Args:
        trainer: of the run, with a :class:`NormWindow` among its callbacks. folder: the run's.
        say: takes the lines; None to write the file alone.
    """

    def __init__(
        self, trainer: MDMTrainer, folder: Path, settings: SpikeSettings, say: Callable[[str], None] | None = None
    ):
        self.trainer, self.folder, self.settings, self.say = trainer, folder, settings, say
        self.found: list[dict] = []
        """The outlier steps so far."""
        self._told, self._untold = -math.inf, 0

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            self.found = _cut(self.folder, state.global_step)

    def on_step_end(self, args, state, control, **_):
        loss, norm = self.trainer.watch.last
        loss = self._of_all_ranks(loss)
        if norm is None or not math.isfinite(norm + loss):
            return  # after an overflow float16's loss scaler leaves the step out
        seen = norm_window(self.trainer)
        usual = seen.median()
        if usual is not None and norm > self.settings.factor * usual and state.is_world_process_zero:
            self._note(state.global_step, norm, usual, loss, len(seen.norms))
        seen.add(norm, loss, self.settings.window)

    def on_train_end(self, args, state, control, **_):
        if self._untold and self.say is not None:
            self.say(f"{len(self.found)} outlier steps are in {self.folder / SPIKES}")

    def kept(self) -> list[Path]:
        """The checkpoints before the newest outlier steps, as many as ``keep`` says."""
        newest = self.found[-self.settings.keep :] if self.settings.keep else []
        return [self.folder / spike["checkpoint"] for spike in newest if spike["checkpoint"]]

    def _of_all_ranks(self, loss: float) -> float:
        """The step's loss, of which each rank knows its own rows' part times the number of ranks."""
        mine = torch.tensor([loss], device=self.trainer.args.device, dtype=torch.float32)
        return float(self.trainer.accelerator.gather(mine).mean()) if self.trainer.args.world_size > 1 else loss

    def _note(self, step: int, norm: float, usual: float, loss: float, steps: int) -> None:
        before = [folder for folder in in_order(self.folder) if (folder / STAMP).is_file()]
        spike = {"step": step, "grad_norm": norm, "median": usual, "loss": loss}
        spike |= {"checkpoint": before[-1].name if before else None, "time": round(time.time(), 3)}
        self.found.append(spike)
        with naming(self.folder / SPIKES), (self.folder / SPIKES).open("ab") as file:
            file.write((json.dumps(spike) + "\n").encode())  # in one write, so that a kill falls before or after it
        if step - self._told < self.settings.window:
            self._untold += 1
            return
        more = f"; {self._untold} more before it" if self._untold else ""
        self._told, self._untold = step, 0
        if self.say is not None:
            anew = "" if before else " --from-start"
            self.say(
                f"{step:>8,}  outlier: gradient norm {norm:.3g}, {norm / usual:.3g} times the median of the last "
                f"{steps} steps{more}; why: stabledllm replay {self.folder} --step {step}{anew}"
            )


def watch_spikes(trainer: MDMTrainer, folder: Path, settings: SpikeSettings, say: Callable[[str], None] | None) -> None:
    """Let a trainer note its outlier steps in its run's folder, and keep the checkpoints that they need."""
    watch = SpikeWatch(trainer, folder, settings, say)
    trainer.add_callback(NormWindow())
    trainer.add_callback(watch)
    trainer.kept_checkpoints = watch.kept


def norm_window(trainer: MDMTrainer) -> NormWindow:
    """The trainer's window; looked up each time, since a resumed Trainer replaces it by the checkpoint's."""
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, NormWindow))


def read_spikes(folder: Path) -> list[dict]:
    """The outlier steps of a run in the order of its steps; a line that a kill cut in half is left out."""
    found = {line["step"]: line for line in whole_lines(folder / SPIKES)}
    return [found[step] for step in sorted(found)]


def _cut(folder: Path, step: int) -> list[dict]:
    """Keep the outlier steps up to that of a checkpoint, and what was replayed of them; the rest is made again."""
    kept = [spike for spike in read_spikes(folder) if spike["step"] <= step]
    if kept:
        write_jsonl(folder / SPIKES, kept)
    else:
        (folder / SPIKES).unlink(missing_ok=True)
    for path in (folder / REPLAYS).glob("step-*.json"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            path.unlink()
    return kept
