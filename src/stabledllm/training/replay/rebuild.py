"""Builds a run's Trainer anew in a folder of its own, and brings it to a step, before the optimizer makes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from stabledllm.build import build_method, build_model, set_form
from stabledllm.config.settings import AverageSettings, TrainSettings
from stabledllm.data.bundle import choose, load_bundle
from stabledllm.data.row_stream import longest_of
from stabledllm.data.rows import TokenRow
from stabledllm.errors import Diverged, UserError
from stabledllm.noise.methods import Method
from stabledllm.planning.environment import fitting_views, refuse_too_large
from stabledllm.runtime.saying import silent
from stabledllm.runtime.showing import bar, busy
from stabledllm.training.arguments import DEFAULTS
from stabledllm.training.checkpoints import DENSITY
from stabledllm.training.identity import compare, identity_of, with_content
from stabledllm.training.progress import StepBar
from stabledllm.training.replay.point import Point
from stabledllm.training.run import build_trainer
from stabledllm.training.streaming import known_for, reading, rows_of_run

_DROPPED = (
    "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "eval_", "save_", "push_to_hub",
    "hub_", "dataloader_num_workers", "dataloader_persistent", "dataloader_prefetch", "dataloader_multiprocessing",
    "ddp_", "fsdp", "parallelism_config", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
)  # fmt: skip
"""Beginnings of the names of TrainingArguments that mean nothing to a few steps in one process, or would write."""


class Reached(Exception):
    """The step is drawn and its gradient taken; raised in the place of the optimizer's step."""


class StopAt(TrainerCallback):
    """Raises :class:`Reached` once a step has its gradient, and shows how far it is."""

    def __init__(self, step: int, shown):
        self.step, self.shown = step, shown

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            raise Reached

    def on_step_end(self, args, state, control, **_):
        self.shown.update()


class Remembering:
    """A collator that remembers the rows that it was given, by their place in the order of the rows.

    >>> remembering = Remembering(len)
    >>> remembering([("first row", 7)]), remembering.rows[7]
    (1, 'first row')
    """

    def __init__(self, collate: Callable[[list], dict]):
        self.collate = collate
        self.rows: dict[int, TokenRow] = {}

    def __call__(self, items: Sequence[tuple[TokenRow, int]]) -> dict:
        self.rows |= {place: row for row, place in items}
        return self.collate(items)


def at_the_step(point: Point, scratch: Path, micro_batch: int | None, say: Callable[[str], None]):
    """The run's Trainer with the gradient of the step, its method, its rows by place, and how the step ended if badly.

    Args:
        scratch: an empty folder to work in; the run's own is only read.
        micro_batch: rows per forward, instead of the run's own.

    Raises:
        UserError: the data or the model is another than the run's, or what it used is not here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("replay: expected one process, found several; start it without a launcher.")
    settings = _settings(point, scratch, micro_batch)
    method = build_method(settings.method, settings)
    trainer, rows, remembering = _trainer(point, settings, method, say)
    folder = point.checkpoint.folder if point.checkpoint else None
    with reading(rows), bar(point.steps_before, f"to step {point.step}", "step") as shown:
        trainer.add_callback(StopAt(point.step, shown))
        try:
            trainer.train(resume_from_checkpoint=str(folder) if folder else None)
        except Reached:
            return trainer, method, remembering.rows, None
        except Diverged as error:
            if error.step != point.step or not trainer.batches:
                raise UserError(
                    f"{point.run}: expected to come to step {point.step}, found that the steps before it diverge here "
                    f"at step {error.step}: {error.what}."
                ) from None
            return trainer, method, remembering.rows, error
    raise UserError(f"{point.run}: expected to come to step {point.step}, found that training ends before it.")


def _settings(point: Point, scratch: Path, micro_batch: int | None) -> TrainSettings:
    settings = point.settings
    if settings.trainer.get("deepspeed"):
        raise UserError(f"{point.run}: expected a run without DeepSpeed, which one process cannot rebuild, found one.")
    trainer = {name: value for name, value in settings.trainer.items() if not name.startswith(_DROPPED)}
    change = {"out": str(scratch), "trainer": trainer, "callbacks": [], "allow_changed": []}
    change |= {"eval_every": None, "save_every": None}
    if micro_batch is not None:
        if settings.batch % micro_batch:
            raise UserError(
                f"replay: expected --micro-batch to divide the {settings.batch} rows of a step, found {micro_batch}."
            )
        change["micro_batch"] = micro_batch
    return settings.model_copy(update=change)


def _trainer(point: Point, settings: TrainSettings, method: Method, say: Callable[[str], None]):
    with busy(f"reading the files of {settings.model}"):
        identity = identity_of(settings, method, DEFAULTS)
    chosen = choose(settings.data, silent)
    _refuse_another(point, with_content(identity, chosen.digests))
    refuse_too_large(settings, longest=1)
    loaded = build_model(settings)
    set_form(loaded, settings)
    data = load_bundle(settings.data, loaded.tokenizer, say=silent, chosen=chosen, tell=silent)
    rows = rows_of_run(data.train, settings)
    known = known_for(data.train, method, settings, silent)
    longest = longest_of(data.train)
    refuse_too_large(settings, longest=longest)
    laid_out = fitting_views(settings, longest=longest).model_copy(update={"average": AverageSettings()})
    fitted = point.run / DENSITY
    if not point.checkpoint and fitted.is_file():
        laid_out = laid_out.model_copy(update={"p_of_t": str(fitted)})  # fitted once, not again
    folder = point.checkpoint.folder if point.checkpoint else None
    trainer, _ = build_trainer(laid_out, method, loaded, (rows, known, []), folder, silent)
    trainer.remove_callback(StepBar)
    # As the checkpoint has them, which transformers compares; nothing is saved or evaluated.
    trainer.args.save_steps = point.settings.save_every or trainer.args.save_steps
    trainer.args.eval_steps = point.settings.eval_every
    remembering = trainer.data_collator = Remembering(trainer.data_collator)
    trainer.begin(identity, settings.model_dump(), point.checkpoint, changed=point.changed)
    before = f"from {folder}" if folder else "from the first step"
    again = "one step before it is" if point.steps_before == 1 else f"{point.steps_before} steps before it are"
    say(f"replay: step {point.step} {before}; {again} made again")
    return trainer, rows, remembering


def _refuse_another(point: Point, identity: dict) -> None:
    """Refuse data or a model that are not the run's."""
    if point.identity is None:
        return
    compared = compare(point.identity, identity)
    differing = {key: values for key, values in compared.differing.items() if not key.startswith("trainer.")}
    replace(compared, differing=differing).refuse(point.run, "a run", "give back what it was trained with")
