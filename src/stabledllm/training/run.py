"""Makes one training run from its settings: data, density, training, evaluation, ``run.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from stabledllm.build import build_decoding, build_method, build_model, set_form
from stabledllm.config.changeable import refuse_unchangeable
from stabledllm.config.run_folder import PROGRESS
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import DataBundle, choose, load_bundle
from stabledllm.data.images import are_images, with_image_defaults
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.row_stream import longest_of
from stabledllm.data.rows import TokenRow, marks_in
from stabledllm.data.streamable import refuse_unstreamable
from stabledllm.decoding import left_to_right
from stabledllm.errors import Diverged
from stabledllm.method_checks import check_autoregressive, check_blocks, check_marks, check_model
from stabledllm.models.loading import LoadedModel
from stabledllm.models.names import in_own_blocks
from stabledllm.models.new import is_new
from stabledllm.noise.methods import Method
from stabledllm.noise.of_parts import OfParts
from stabledllm.planning.environment import fitting_views, refuse_too_large
from stabledllm.policy_checks import check_policy_method
from stabledllm.ppots.record import FittedDensity
from stabledllm.rewards.named import rewards_of
from stabledllm.rewards.reward import Function, Rewards
from stabledllm.runtime.launched import is_main_process
from stabledllm.runtime.locks import in_its_folder
from stabledllm.runtime.saying import say as print_line
from stabledllm.runtime.saying import silent
from stabledllm.runtime.showing import busy, without_bars
from stabledllm.training.arguments import DEFAULTS, training_arguments
from stabledllm.training.averages.watch import watch_averages
from stabledllm.training.block_schedule import check_block_schedule, check_reached
from stabledllm.training.callbacks import add_to, all_callbacks, failing_by_name, names_of
from stabledllm.training.checkpoints import DENSITY, last_whole
from stabledllm.training.density import obtain_density
from stabledllm.training.devices import refuse_silent_changes
from stabledllm.training.diverged import end_diverged, refuse_to_repeat, save_if_finite
from stabledllm.training.earlier import MODEL, RUN, TRAINED, Start, find_start, is_begun
from stabledllm.training.expert_load import expert_load_of
from stabledllm.training.features import refuse_checkpointing
from stabledllm.training.finishing import evaluate_saved, finish, remove_leftovers, run_record
from stabledllm.training.identity import identity_of, of_rewards, with_content
from stabledllm.training.kinds import adaptive_of, kind_of_trainer
from stabledllm.training.log_lines import LogLines
from stabledllm.training.progress import ProgressFile, StepBar, close_bars
from stabledllm.training.screen import Screen
from stabledllm.training.spikes import watch_spikes
from stabledllm.training.start_block import StartBlock, steps_of
from stabledllm.training.streaming import counted, known_for, reading, rows_of_run
from stabledllm.training.trainer import MDMTrainer
from stabledllm.training.untuned import before_first_step

Say = Callable[[str], None]
ReadData = Callable[[Any], DataBundle]
"""Returns the data for a tokenizer; lets the caller keep the data over several runs."""


@in_its_folder("train")
def train(
    settings: TrainSettings,
    *,
    data: DataBundle | ReadData | None = None,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    say: Say = print_line,
    screen: Screen | None = None,
    untuned: bool = True,
    rewards: Sequence[str | Function] = (),
) -> dict:
    """Train, or continue a killed run, and return the content of ``run.json``.

    A finished run in the same folder is returned as it is. A killed run continues from its last whole checkpoint with
    the same bits as if it had not been killed. With ``allow_changed`` either goes on under other settings.

    Args:
        data: the rows, instead of those that the settings name. callbacks: the user's own, after those that the
            settings name; no draw depends on them, and a resumed run may have others.
        say: takes the lines that tell of the run.
        screen: what is shown beside the results; without it all of it, to ``say``.
        untuned: evaluate the model before its first step too, to set it beside the trained one.
        rewards: for policy gradients, functions (or names) in place of those that the settings name.

    Raises:
        UserError: the settings, data or callbacks are bad, or the folder holds a run with another identity.
        Diverged: the run's numbers are no longer finite, or the run that is there diverged; ``run.json`` says so.
    """
    settings = in_own_blocks(with_image_defaults(settings))
    refuse_unstreamable(settings)
    with without_bars() if settings.trainer.get("disable_tqdm") else nullcontext():
        return _train(settings, data, callbacks, say, screen or Screen(), untuned, rewards)


def _train(
    settings: TrainSettings,
    data: DataBundle | ReadData | None,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
    say: Say,
    screen: Screen,
    untuned: bool,
    given_rewards: Sequence[str | Function] = (),
) -> dict:
    out = Path(settings.out)
    say = say if is_main_process() else silent
    method = build_method(settings.method, settings)
    check_block_schedule(settings, method)
    if settings.block_size:
        check_blocks(method)
    decoding = build_decoding(settings.decoding)  # needed only at the end, but checked before the long work
    rewards = rewards_of(settings, given_rewards)
    with busy(f"reading the files of {settings.model}"):
        identity = identity_of(settings, method, DEFAULTS) | (of_rewards(rewards) if rewards else {})
    start, chosen = Start(), None
    refuse_unchangeable(settings.allow_changed)
    if is_begun(out):
        if not isinstance(data, DataBundle):
            chosen = choose(settings.data, say)
        digests = chosen.digests if chosen else data.digests
        with busy(f"checking what is in {out}"):
            start = find_start(out, with_content(identity, digests), settings.allow_changed, DEFAULTS, say)
    if start.finished:
        refuse_to_repeat(out, start.finished)
        if is_main_process():
            remove_leftovers(out)
        say(f"{out}: already finished")
        return start.finished
    if data is None:
        # The notes on the data stand in the block, and in run.json.
        data = partial(load_bundle, settings.data, say=say, chosen=chosen, tell=silent)
    if start.trained:
        say(f"{out}: already trained; its evaluation continues")
        try:
            return evaluate_saved(settings, data, start.trained, say)
        except Diverged as error:
            raise _ended_diverged(out, start.trained, error, model=True) from None
    checkpoint = start.checkpoint
    if checkpoint:
        say(f"resuming from {checkpoint.folder}")
    arguments = _arguments(settings)  # refuses what does not fit this machine before anything is loaded
    own = all_callbacks(settings.callbacks, callbacks)
    settings = settings.model_copy(update={"callbacks": names_of(own)})  # the record names the given ones too
    refuse_too_large(settings, longest=1)
    loaded = build_model(settings)
    check_model(method, loaded.name, loaded.autoregressive)
    if loaded.autoregressive:
        left_to_right(decoding)
        check_autoregressive(method.objective)
    set_form(loaded, settings)
    if callable(data):
        data = data(loaded.tokenizer)
    rows = rows_of_run(data.train, settings)
    known = known_for(data.train, method, settings, say)
    longest = longest_of(data.train)
    refuse_too_large(settings, longest=longest)
    laid_out = fitting_views(settings, longest=longest)
    if settings.views_per_forward == "auto":
        say(f"views of a row in one forward: {laid_out.views_per_forward or 'all'}")
    if is_main_process():
        done = checkpoint.step if checkpoint else 0
        number = len(rows) if known is rows else None
        named = laid_out
        if rewards and given_rewards:  # in place of those that the settings name
            named = laid_out.model_copy(update={"grpo": laid_out.grpo.model_copy(update={"reward": rewards.names})})
        shown = StartBlock(named, arguments, method, loaded, data, known[0], number, done)
        screen.tell(shown, say)
    with failing_by_name(own):
        trainer, density = build_trainer(
            laid_out, method, loaded, (rows, known, data.validation), checkpoint and checkpoint.folder, say, own,
            lines=screen.lines, rejected=data.rejected, prompts=data.prompts, rewards=rewards,
        )  # fmt: skip
    identity = with_content(identity, data.digests)
    first = trainer if untuned and settings.untuned and not (checkpoint or is_new(settings.model)) else None
    trainer.begin(
        identity,
        settings.model_dump(),
        checkpoint,
        changed=start.changed,
        at_start=partial(before_first_step, out, first, anew=checkpoint is None),
    )
    if changes := trainer.changes_since(checkpoint):
        say(f"note: {checkpoint.folder} was made with other means ({'; '.join(changes)}): last digits may differ")
    try:
        with failing_by_name(own), reading(rows):
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            finally:
                close_bars(trainer.callback_handler.callbacks)
        data = replace(data, notes=[*data.notes, *counted(rows)])
        return finish(settings, trainer, loaded, data, density, identity, say)
    except Diverged as error:
        record = run_record(settings, trainer, data, density, identity)
        raise _ended_diverged(out, record, error, model=save_if_finite(trainer, out / MODEL, identity)) from None


def _ended_diverged(out: Path, record: dict, error: Diverged, *, model: bool) -> Diverged:
    last = last_whole(out)
    ended = end_diverged(out, RUN, record, error, checkpoint=last.folder if last else None, model=model)
    (out / TRAINED).unlink(missing_ok=True)
    return ended


def _caption_dropout(settings: TrainSettings) -> float | None:
    """The probability of caption dropout for a run on images; None for any other."""
    return settings.data.image.caption_dropout if are_images(settings.data.train) else None


def build_trainer(
    settings: TrainSettings,
    method: Method,
    loaded: LoadedModel,
    data: tuple[Sequence[TokenRow], Sequence[TokenRow], Sequence[TokenRow]],
    checkpoint: Path | None,
    say: Say,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    lines: bool = False,
    rejected: Mapping[str, Sequence[TokenRow]] | None = None,
    prompts: Mapping[str, Sequence[RolloutPrompt]] | None = None,
    rewards: Rewards | None = None,
) -> tuple[MDMTrainer, FittedDensity | None]:
    """The Trainer for these settings, and the fitted density that it draws t from (None where none is fitted).

    Args:
        data: the rows that are trained on, those that stand for them before training (all where all are known), and
            those that are evaluated. lines: whether each log, evaluation and checkpoint is told in a line.
        rejected: for preferences the other answers of the rows that are trained on and evaluated.
        prompts, rewards: for policy gradients what is answered, and what responses are worth.
    """
    out, (rows, known, evaluated) = Path(settings.out), data
    check_marks(method, marks_in(known))
    check_policy_method(settings, OfParts(method.name))
    # Without validation rows there is nothing to evaluate on, whatever eval_every says.
    arguments = _arguments(settings if len(evaluated) else settings.model_copy(update={"eval_every": None}))
    check_reached(settings, steps_of(settings, None if settings.steps else len(rows)))
    refuse_checkpointing(loaded.model, loaded.name, arguments)
    out.mkdir(parents=True, exist_ok=True)
    density = None
    if method.needs_p or (method.adaptive and settings.p_of_t):
        density = obtain_density(settings, method, loaded, known, arguments, checkpoint, say)
    start = density.sampler if density else None
    refit = adaptive_of(settings, method, start, known) if method.adaptive else None
    both = {"train": rows, "validation": evaluated}
    kind = kind_of_trainer(
        settings, method, loaded, start, both, rejected, resumed=checkpoint is not None,
        prompts=prompts, rewards=rewards, say=say,
    )  # fmt: skip
    trainer = kind(
        model=loaded.model,
        args=arguments,
        method=method,
        sampler=method.sampler(start),
        train_rows=rows,
        eval_rows=evaluated,
        mask_id=loaded.mask_id,
        pad_id=loaded.pad_id,
        noise_seed=settings.seed,
        order_seed=settings.order_seed,
        eval_draws=settings.eval_draws,
        density_file=out / DENSITY if density else None,
        adaptive=refit,
        packing=settings.packing,
        group_by_length=settings.group_by_length,
        views_per_forward=settings.views_per_forward,
        caption_dropout=_caption_dropout(settings) or 0.0,
        expert_load=expert_load_of(loaded.model, loaded.name, settings.router.bias_rate, settings.router.loss),
        processing_class=loaded.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # a table of its own in a notebook
    shown = {"loss_ema": method.ema, "reward": rewards is not None}
    trainer.add_callback(LogLines(out, trainer.tokens_since_asked, shown=shown, say=say if lines else None))
    watch_averages(trainer, settings.average, out, checkpoint)
    watch_spikes(trainer, out, settings.spikes, say if lines else None)
    trainer.add_callback(StepBar(f"{method.name}, seed {settings.seed}"))
    trainer.add_callback(ProgressFile(out / PROGRESS))
    add_to(trainer, callbacks)  # last, so that they see a step as the others leave it
    return trainer, density


def _arguments(settings: TrainSettings) -> TrainingArguments:
    """The TrainingArguments, refused where this machine would silently run something else."""
    arguments = training_arguments(settings)
    refuse_silent_changes(arguments)
    return arguments
