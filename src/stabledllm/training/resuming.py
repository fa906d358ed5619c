"""A Trainer whose checkpoints are whole or absent, and whose resumed runs end as if they had not been killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather

from stabledllm.errors import UserError
from stabledllm.runtime.provenance import device_name
from stabledllm.runtime.showing import busy
from stabledllm.training.averages.held import Averages
from stabledllm.training.averages.places import AVERAGES
from stabledllm.training.checkpoints import Checkpoint, remove, rotate, stamp
from stabledllm.training.parts import changes_between, new_part, parts_until, unknown_part
from stabledllm.training.streaming import StreamedRows


class ResumingTrainer(Trainer):
    """A Trainer that saves checkpoints with a record of their files and takes no step beyond the end of a run."""

    identity: dict
    """The identity, which a resumed run must share with this one."""
    density_file: Path | None
    """The saved p(t), copied into every checkpoint."""
    averages: Averages | None = None
    """The averages of the weights, which are in every checkpoint; None where none are kept."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._parts_before: list[dict] = []
        self._part_now = self._new_part({})
        self._changed, self._is_older = False, False
        self._started = time.perf_counter()
        self._ended = False
        self._at_start: Callable[[], None] = lambda: None
        self.kept_checkpoints: Callable[[], list[Path]] = list
        """Returns the checkpoints that stay beyond the limit on their number."""
        self.add_callback(_AtStart(self))

    def begin(
        self,
        identity: dict,
        config: dict,
        checkpoint: Checkpoint | None,
        *,
        changed: bool = False,
        at_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the identity and the settings of the coming steps; call it before training.

        Args:
            config: all settings. checkpoint: the one that the run is resumed from.
            changed: the coming steps have other settings than those before the checkpoint.
            at_start: called after all checks, before the first step.
        """
        self.identity, self._changed, self._at_start = identity, changed, at_start
        self._part_now = self._new_part(config)
        if checkpoint:
            self._is_older = not checkpoint.parts  # older ones do not say under which settings they were made
            self._parts_before = checkpoint.parts or [unknown_part(checkpoint.step)]
            if self.streamed:
                self.streamed.resume(checkpoint.folder, checkpoint.step)

    @property
    def streamed(self) -> StreamedRows | None:
        """The training rows where they are streamed."""
        rows = self.train_dataset.rows
        return rows if isinstance(rows, StreamedRows) else None

    def changes_since(self, checkpoint: Checkpoint | None) -> list[str]:
        """A phrase for each package or device that has changed since the checkpoint was made."""
        return changes_between(self._parts_before[-1], self._part_now) if checkpoint else []

    @property
    def parts(self) -> list[dict]:
        """The parts of the steps so far, which say how they were made."""
        return parts_until(
            self._parts_before, self._part_now, self.state.global_step, time.perf_counter() - self._started
        )

    def _new_part(self, config: dict) -> dict:
        return new_part(config, device_name(self.args.device), self.args.world_size)

    def _save_checkpoint(self, model, trial) -> None:
        """Save as transformers does, but delete nothing old before the new checkpoint is whole and recorded as such."""
        out = Path(self._get_output_dir(trial=trial))
        folder, limit = out / f"checkpoint-{self.state.global_step}", self.args.save_total_limit
        if self.is_world_process_zero():
            remove(folder)  # a cut-off or damaged one, whose files must not mix with the new ones
        self.accelerator.wait_for_everyone()
        self._note_what_is_not_logged()
        self.args.save_total_limit = None
        with busy(f"saving {folder}"):
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if self.averages:
                self.averages.save(folder / AVERAGES, writes=self.is_world_process_zero())
            self.accelerator.wait_for_everyone()  # every rank's part is there
            if self.is_world_process_zero():
                if self.streamed:
                    self.streamed.save(folder, self.state.global_step)
                stamp(folder, self.identity, self.density_file, self.parts)
        if self.is_world_process_zero():
            best = self.state.best_model_checkpoint
            rotate(out, limit, [folder, *([Path(best)] if best else []), *self.kept_checkpoints()])

    def _note_what_is_not_logged(self) -> None:
        """Save the losses since the last line of the log in the checkpoint, for the next line of a resumed run."""
        if (losses := getattr(self, "_tr_loss", None)) is not None:  # a local variable in older transformers
            loss = nested_gather(losses, self.args.parallel_mode).mean().item()
            self.statistics.not_logged = {"loss": loss, "since": self._globalstep_last_logged}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """A step's micro-batches; none where the resumed run had ended already, so that it takes no further step."""
        if self._ended:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        """Load a checkpoint's state; where the settings have changed, the new ones hold from the first step on.

        An older checkpoint does not say whether they have, so it is treated alike: equal settings give equal bits.
        """
        can_change = isinstance(self.lr_scheduler, LambdaLR) and not self.is_deepspeed_enabled
        if checkpoint is None or not (self._changed or (self._is_older and can_change)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if not can_change:
            raise UserError(
                f"key 'allow_changed': expected a schedule that is a function of the step, and no DeepSpeed, found "
                f"'{self.args.lr_scheduler_type}'; start anew in another 'out'."
            )
        new_groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        schedule.base_lrs = [group["initial_lr"] for group in new_groups]
        schedule._last_lr = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, new_group, rate in zip(self.optimizer.param_groups, new_groups, schedule._last_lr, strict=True):
            group |= new_group | {"lr": rate}


class _AtStart(TrainerCallback):
    """Corrects a resumed Trainer's state after its checkpoint is loaded and before the first step."""

    def __init__(self, trainer: ResumingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        trainer = self.trainer
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):  # transformers saves only those that the checkpoint had
                state.stateful_callbacks.setdefault(type(callback).__name__, {})
        state.compute_steps(args, state.max_steps)  # transformers would log and save as often as the checkpoint says
        if state.global_step > state.max_steps:
            raise UserError(
                f"steps: expected at least the {state.global_step} that are done in {args.output_dir}, found "
                f"{state.max_steps}."
            )
        if trainer._changed and state.global_step == state.max_steps:
            raise UserError(
                f"key 'allow_changed': expected more steps than the {state.max_steps} that are done in "
                f"{args.output_dir}, since the new settings would have no effect, found none."
            )
        trainer._ended = state.global_step > 0 and (
            state.global_step == state.max_steps
            or (_had_stopped(state) and not trainer._changed and not trainer._is_older)
        )
        if trainer._ended:
            # The checkpoint restores the flags of the moment it was saved: it would be saved and evaluated again.
            control.should_save = control.should_evaluate = control.should_log = False
        pending = trainer.statistics.not_logged
        if pending and state.global_step > 0 and getattr(trainer, "_tr_loss", None) is not None:
            trainer._tr_loss += pending["loss"]
            trainer._globalstep_last_logged = pending["since"]
        trainer._at_start()
        trainer._started = time.perf_counter()  # what precedes the first step is no part of it


def _had_stopped(state) -> bool:
    """Whether the run had decided to end at this checkpoint, before its last step."""
    return bool(state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop"))
