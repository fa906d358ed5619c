"""One training run from its settings: data, density, training, evaluation, ``run.json``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from stabledllm.config.build import build_adaptive, build_decoding, build_method, build_model, build_objective
from stabledllm.config.settings import TrainSettings
from stabledllm.control_variate import default_rate
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.data.pictures import are_pictures, settled
from stabledllm.data.rows import require_marks
from stabledllm.decoding import left_to_right
from stabledllm.errors import UserError
from stabledllm.files import read_json
from stabledllm.models.image_choices import keep_image_choices
from stabledllm.models.loading import LoadedModel
from stabledllm.models.new import is_new
from stabledllm.noise.blocks import refuse_for_blocks
from stabledllm.noise.methods import Method
from stabledllm.planning.environment import fitting_views, refuse_too_large
from stabledllm.ppots.density import FittedDensity
from stabledllm.training.arguments import refuse_without_recomputing, training_arguments
from stabledllm.training.checkpoints import DENSITY, check_same, last_complete
from stabledllm.training.density import obtain_density
from stabledllm.training.devices import is_main_process, refuse_silent_changes
from stabledllm.training.finishing import RUN, SCHEMA, TRAINED, evaluate_saved, finish
from stabledllm.training.progress import PROGRESS, ProgressFile, StepBar
from stabledllm.training.statistics import StepStatistics
from stabledllm.training.trainer import MDMTrainer

Say = Callable[[str], None]
ReadData = Callable[[Any], DataBundle]
"""Gives the data for a tokenizer, for those who keep them over several runs."""


def train(settings: TrainSettings, *, data: DataBundle | ReadData | None = None, say: Say = print) -> dict:
    """Train, or continue a killed run, and return what ``run.json`` holds.

    A finished run in the same folder is returned as it is. A killed run continues from its last complete
    checkpoint with the same bits as if it had not been killed.

    Raises:
        UserError: bad settings or data, or a folder that holds a run with another identity.
    """
    settings = settled(settings)
    out = Path(settings.out)
    say = say if is_main_process() else _silent
    method = build_method(settings.method, settings.method_options)
    method.under(build_objective(settings.objective))
    if settings.block_size:
        refuse_for_blocks(method)
    decoding = build_decoding(settings.decoding)  # what is needed only at the end is refused at the start
    identity = run_identity(settings, method)
    if (out / RUN).is_file():
        done = read_json(out / RUN, SCHEMA)
        _refuse_other(out, done["identity"], identity)
        say(f"{out}: already finished")
        return done
    if (out / TRAINED).is_file():
        kept = read_json(out / TRAINED, SCHEMA)
        _refuse_other(out, kept["identity"], identity)
        say(f"{out}: already trained; its evaluation continues")
        return evaluate_saved(settings, data, kept, say)
    checkpoint = last_complete(out)
    if checkpoint:
        check_same(checkpoint, identity)
        say(f"resuming from {checkpoint}")
    _arguments(settings)  # what they refuse is refused before anything is loaded
    refuse_too_large(settings, longest=1)
    loaded = build_model(settings)
    loaded.check_method(method)
    if loaded.autoregressive:
        left_to_right(decoding)
    set_form(loaded, settings)
    if data is None:
        data = load_bundle(settings.data, loaded.tokenizer, say)
    elif callable(data):
        data = data(loaded.tokenizer)
    refuse_too_large(settings, longest=max(len(row) for row in data.train))
    laid_out = fitting_views(settings, longest=max(len(row) for row in data.train))
    if settings.views_per_forward == "auto":
        say(f"views of a row in one forward: {laid_out.views_per_forward or 'all'}")
    trainer, density = build_trainer(laid_out, loaded, data, checkpoint, say)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    return finish(settings, trainer, loaded, data, density, identity, seconds, say)


def _silent(_: str) -> None:
    """What ranks other than the first say."""


def run_identity(settings: TrainSettings, method: Method) -> dict:
    """What decides which numbers are drawn and what is minimised; the split over devices is not in it."""
    return {
        "method": method.name,
        "method_options": settings.method_options.model_dump(),
        "objective": settings.objective.model_dump(),
        "adaptive": settings.adaptive.model_dump() if method.adaptive else None,
        "model": settings.model,
        "init_seed": (settings.init_seed or 0) if is_new(settings.model) else None,
        "lora": settings.lora.model_dump() if settings.lora else None,
        "quantised": settings.quantised,
        "dtype": None if settings.dtype == "float32" else settings.dtype,  # None in runs older than the key
        "end_token": settings.end_token,
        "data": settings.data.train,
        "batch": settings.batch,
        "seed": settings.seed,
        "order_seed": settings.order_seed,
        "block_size": settings.block_size,
        "caption_dropout": _caption_dropout(settings),
        "image_tokenizer": settings.data.image.tokenizer if are_pictures(settings.data.train) else None,
    }


def _caption_dropout(settings: TrainSettings) -> float | None:
    """Of a run on pictures; None for any other."""
    return settings.data.image.caption_dropout if are_pictures(settings.data.train) else None


def set_form(loaded: LoadedModel, settings: TrainSettings) -> None:
    """Note ``block_size`` and how pictures are made in the model's config, for decoding and evaluation.

    Raises:
        UserError: a model that has no block form, one trained in other blocks, or decoding in other blocks.
    """
    size, trained = settings.block_size, getattr(loaded.model.config, "block_size", None)
    if trained and trained != size:
        raise UserError(f"key 'block_size': expected {trained}, as model '{loaded.name}' was trained, found {size}.")
    if are_pictures(settings.data.train):
        keep_image_choices(loaded.model.config, settings.data.image.model_dump())
    if not size:
        return
    if not hasattr(loaded.model.config, "block_size"):
        raise UserError(f"key 'block_size': expected a model with a block form, found '{loaded.name}'.")
    if settings.decoding.block != size:
        raise UserError(f"key 'decoding.block': expected block_size = {size}, found {settings.decoding.block}.")
    loaded.model.config.block_size = size


def build_trainer(
    settings: TrainSettings, loaded: LoadedModel, data: DataBundle, checkpoint: Path | None = None, say: Say = print
) -> tuple[MDMTrainer, FittedDensity | None]:
    """The Trainer of these settings and the density it draws t from."""
    out = Path(settings.out)
    method = build_method(settings.method, settings.method_options)
    require_marks(data.train, method)
    arguments = _arguments(settings)
    refuse_without_recomputing(arguments, loaded)
    out.mkdir(parents=True, exist_ok=True)
    density = None
    if method.needs_p or (method.adaptive and settings.p_of_t):
        density = obtain_density(settings, method, loaded, data.train, arguments, checkpoint, say)
    objective = build_objective(settings.objective)
    start = density.sampler if density else None
    trainer = MDMTrainer(
        model=loaded.model,
        args=arguments,
        method=method,
        sampler=method.sampler(start),
        objective=objective,
        train_rows=data.train,
        eval_rows=data.validation,
        mask_id=loaded.mask_id,
        pad_id=loaded.pad_id,
        noise_seed=settings.seed,
        order_seed=settings.order_seed,
        eval_draws=settings.eval_draws,
        density_file=out / DENSITY if density else None,
        adaptive=build_adaptive(settings.adaptive, method, objective.eps, start) if method.adaptive else None,
        block_size=settings.block_size,
        packing=settings.packing,
        group_by_length=settings.group_by_length,
        views_per_forward=settings.views_per_forward,
        caption_dropout=_caption_dropout(settings) or 0.0,
        identity=run_identity(settings, method),
        processing_class=loaded.tokenizer,
        statistics=StepStatistics(
            settings.method_options.ema_bins,
            default_rate(settings.method_options.ema_bins, len(data.train)),
            method.ema,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not settings.trainer.get("disable_tqdm"):
        trainer.add_callback(StepBar(f"{method.name}, seed {settings.seed}"))
    trainer.add_callback(ProgressFile(out / PROGRESS))
    return trainer, density


def _arguments(settings: TrainSettings) -> TrainingArguments:
    """transformers' arguments, if they will be what they say on this machine."""
    arguments = training_arguments(settings)
    refuse_silent_changes(arguments)
    return arguments


def _refuse_other(out: Path, saved: dict, identity: dict) -> None:
    for key, value in identity.items():
        if saved.get(key) != value:
            raise UserError(f"{out}: expected the run that is there with {key}={saved.get(key)!r}, found {value!r}.")
