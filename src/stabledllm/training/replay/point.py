"""Finds from where a step of a run can be rebuilt: the checkpoint before it, its settings, and what was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stabledllm.config.run_folder import MODEL, PROGRESS, RUN, SCHEMA, STAMP, TRAINED
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json
from stabledllm.runtime.saying import silent
from stabledllm.training.checkpoints import Checkpoint, in_order, last_whole, step_of
from stabledllm.training.checkpoints import read as read_checkpoint
from stabledllm.training.diverged import diverged
from stabledllm.training.earlier import is_begun
from stabledllm.training.history import read_history
from stabledllm.training.parts import with_changes
from stabledllm.training.spikes import read_spikes

_OF_MANY = ("*_fsdp_*", "global_step*")
"""Files of checkpoints that only several processes can load."""


@dataclass(frozen=True)
class Point:
    """A step of a run, and from where it can be rebuilt."""

    run: Path
    step: int
    """Counted from 1."""
    checkpoint: Checkpoint | None
    """None: the steps before it are trained again from the first."""
    settings: TrainSettings
    """Those that the step was made under."""
    identity: dict | None
    """The identity of the run under these settings; None where it is not known."""
    changed: bool
    """Whether other settings were in force until the checkpoint."""
    recorded: dict
    """The step's ``grad_norm``, and where it is known its ``loss``; empty where nothing was recorded."""

    @property
    def steps_before(self) -> int:
        """The steps that are made again before it."""
        return self.step - 1 - (self.checkpoint.step if self.checkpoint else 0)


@dataclass(frozen=True)
class _Made:
    """How a stretch of steps was made."""

    first: int
    last: int
    config: dict | None
    identity: dict | None


def find_point(run: Path, step: int, *, from_start: bool = False, say=silent) -> Point:
    """From where a step can be rebuilt.

    Args:
        from_start: train the steps before it again where no checkpoint is before it.

    Raises:
        UserError: there is no run, no such step, no checkpoint before it, one that a single process cannot load, or
            settings that are not known.
    """
    _refuse_other_folders(run)
    last = _steps_made(run)
    if not 1 <= step <= last:
        raise UserError(f"{run}: expected a step from 1 to {last}, which the run has made, found {step}.")
    checkpoint = last_whole(run, say, before=step)
    if checkpoint is None and step > 1 and not from_start:
        raise UserError(_without_checkpoint(run, step, last))
    if checkpoint is not None and any(any(checkpoint.folder.glob(pattern)) for pattern in _OF_MANY):
        raise UserError(
            f"{checkpoint.folder}: expected a checkpoint that one process can load, found one in shards (FSDP or "
            f"DeepSpeed)."
        )
    made = _made(run, step, checkpoint)
    begun = checkpoint.step if checkpoint else 0
    if made.first - 1 > begun:
        raise UserError(
            f"{run}: expected the checkpoint of step {made.first - 1}, behind which other settings hold "
            f"(allow_changed), found none before step {step} but that of step {begun}."
        )
    return Point(
        run=run,
        step=step,
        checkpoint=checkpoint,
        settings=_settings(run, step, made.config),
        identity=made.identity,
        changed=begun > 0 and made.first - 1 == begun,
        recorded=_recorded(run, step),
    )


def _refuse_other_folders(run: Path) -> None:
    if is_begun(run) or (run / PROGRESS).is_file():
        return
    if run.name.startswith("checkpoint-") or run.name == MODEL:
        instead = f"; name {run.parent}"
    else:
        runs = sorted(path.parent for path in run.glob(f"runs/*/*/{RUN}"))
        instead = f"; name one of its {len(runs)} runs, such as {runs[0]}" if runs else ""
    raise UserError(f"{run}: expected the folder of a training run, found no record or checkpoint of one{instead}.")


def _records(run: Path) -> list[dict]:
    """The record of a run that has ended, or has been trained, in a list that is empty for any other."""
    return [read_json(run / name, SCHEMA) for name in (RUN, TRAINED) if (run / name).is_file()][:1]


def _steps_made(run: Path) -> int:
    """The number of optimizer steps that are known to be made, a step at which the run diverged among them."""
    made = [step_of(folder) for folder in in_order(run)]
    for record in _records(run):
        made.append(record.get("steps") or 0)
        made.append((diverged(record) or {}).get("step") or 0)
    made += [line["step"] for line in [*read_history(run), *read_spikes(run)]]
    if (run / PROGRESS).is_file():
        made.append(read_json(run / PROGRESS).get("step") or 0)
    return max(made, default=0)


def _without_checkpoint(run: Path, step: int, last: int) -> str:
    steps = [step_of(folder) for folder in in_order(run) if (folder / STAMP).is_file()]
    again = f"--from-start trains the first {step - 1:,} steps again"
    if steps:
        return (
            f"{run}: expected a checkpoint before step {step}, found the first at step {steps[0]}: steps "
            f"{steps[0] + 1} to {last} can be replayed; {again}."
        )
    return (
        f"{run}: expected a checkpoint before step {step}, found none: they were deleted, or save_every made none; "
        f"{again}."
    )


def _made(run: Path, step: int, checkpoint: Checkpoint | None) -> _Made:
    """How the step was made, by the first record behind it, or else by the checkpoint before it."""
    for folder in in_order(run):
        if step_of(folder) >= step and (folder / STAMP).is_file():
            later = read_checkpoint(folder)
            if later.parts:
                return _of_parts(later.parts, step, later.identity)
    for record in _records(run):
        parts = record.get("parts") or []
        full = [part | {"config": with_changes(record["config"], part.get("changed"))} for part in parts]
        return _of_parts(full, step, record["identity"]) if full else _Made(1, step, record["config"], None)
    if checkpoint is None or not checkpoint.parts:
        raise UserError(f"{run}: expected a record of the settings of step {step}, found none.")
    return _Made(1, step, checkpoint.parts[-1]["config"], checkpoint.identity)


def _of_parts(parts: list[dict], step: int, identity: dict) -> _Made:
    """The part with a step; one behind all of them was not ended, since the run diverged at it."""
    found = next((part for part in parts if part["steps"][0] <= step <= part["steps"][1]), parts[-1])
    first, last = found["steps"]
    return _Made(first, max(last, step), found["config"], identity if found is parts[-1] else None)


def _settings(run: Path, step: int, config: dict | None) -> TrainSettings:
    try:
        settings = TrainSettings.model_validate(config)
    except ValueError as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{run}: expected settings of step {step} that this version reads, found others ({text})."
        ) from None
    if settings.objective.kind != "masked":
        raise UserError(
            f"{run}: expected a run on single answers, whose gradient is a sum over rows, found one on "
            f"{'preferences' if settings.objective.kind == 'dpo' else 'rewards'}."
        )
    return settings


def _recorded(run: Path, step: int) -> dict:
    """What is recorded of a step: as an outlier, or in the log where it ended a line."""
    for spike in read_spikes(run):
        if spike["step"] == step:
            return {name: spike[name] for name in ("grad_norm", "loss")}
    lines = {line["step"]: line for line in read_history(run) if line.get("grad_norm") is not None}
    if step not in lines:
        return {}
    alone = step == 1 or step - 1 in lines  # else the line's loss is the mean of several steps
    return {name: lines[step][name] for name in ("grad_norm", "loss")[: 1 + alone]}
