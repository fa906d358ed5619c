"""The run of ``stabledllm decompose``: loads model and rows, measures everything and writes the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stabledllm.build import build_methods, loading_options, set_blocks
from stabledllm.config.settings import DecomposeSettings
from stabledllm.data.bundle import load_rows
from stabledllm.data.images import with_image_defaults
from stabledllm.data.rows import TokenRow, marks_in
from stabledllm.errors import UserError
from stabledllm.forward.blocks import UnitMeter
from stabledllm.lab.autoregressive import measure_autoregressive
from stabledllm.lab.bar import progress_bar
from stabledllm.lab.from_settings import build_measuring
from stabledllm.lab.measure.blocks import BlockLaboratory
from stabledllm.lab.measure.decompose import (
    LEAST_ROWS,
    check_methods,
    measure_gradients,
    measure_losses,
    record_of,
)
from stabledllm.lab.measure.laboratory import Laboratory
from stabledllm.lab.measure.plan import gradient_stages, loss_stages
from stabledllm.lab.measure.timing import gradient_cost
from stabledllm.lab.quick import NOTE, QUICKER
from stabledllm.lab.recommendation import is_comparable, recommend
from stabledllm.method_checks import check_blocks, check_marks, check_model
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.methods import Method
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json


def run_decompose(settings: DecomposeSettings, say: Callable[[str], None] = print, *, quick: bool = False) -> dict:
    """Measure, write ``decomposition.json`` into ``settings.out`` and return it.

    Args:
        quick: whether the settings are those of ``--quick``, which the record's notes then say.

    Raises:
        UserError: bad data, an unknown method, or too few rows to measure anything.
    """
    started = time.perf_counter()
    settings = with_image_defaults(settings)
    methods = build_methods(settings)
    check_methods(methods, settings.gradient)
    loaded = load_model(settings.model, **loading_options(settings))
    set_blocks(loaded, settings)
    place(loaded.model)
    size = getattr(loaded.model.config, "block_size", None)
    if size:
        methods = _in_blocks(settings, methods)
    data = settings.data
    wanted = max(settings.rows, settings.probe.rows, settings.grad.rows)
    rows, note = load_rows(data.train, loaded.tokenizer, data, "train", data.train_rows, say, wanted=wanted)
    say(note)
    if len(rows) < LEAST_ROWS:
        raise UserError(
            f"data '{settings.data.train}': expected at least {LEAST_ROWS} rows to measure variances, found "
            f"{len(rows)}."
        )
    if loaded.autoregressive:
        measured, forwards = measure_autoregressive(settings, loaded, rows)
    else:
        measured, forwards = _measure_all(settings, loaded, rows, methods, quick, size)
    if quick:
        measured["notes"] = [NOTE, *measured["notes"]]
    record = record_of(
        measured,
        model=settings.model,
        data=settings.data.train,
        config=settings.model_dump(),
        seed=settings.seed,
        device=next(loaded.model.parameters()).device,
        seconds=time.perf_counter() - started,
        forwards=forwards,
        note=note,
    )
    if is_comparable(record):
        record["recommendation"] = recommend(record).as_dict()
    write_json(Path(settings.out) / "decomposition.json", record)
    return record


def _in_blocks(settings: DecomposeSettings, methods: list[Method]) -> list[Method]:
    """The methods to measure on a model in blocks: of the default list, those that have a meaning in blocks.

    Raises:
        UserError: a method that has no meaning there.
    """
    if "methods" not in settings.model_fields_set:
        methods = [method for method in methods if method.signal in (None, "loss")]
    for method in methods:
        check_blocks(method)
    return methods


def _measure_all(
    settings: DecomposeSettings,
    loaded: LoadedModel,
    rows: list[TokenRow],
    methods: list[Method],
    quick: bool,
    size: int | None,
) -> tuple[dict, int]:
    """The entries of the record for a masked diffusion model, and the number of forward passes they took."""
    for method in methods:
        check_model(method, loaded.name, loaded.autoregressive)
        check_marks(method, marks_in(rows))
    options = build_measuring(settings)
    stages = loss_stages(options, methods, rows, in_blocks=bool(size))
    if settings.gradient:
        units = UnitMeter(loaded, rows, methods[0].objective, block_size=size).rows if size else None
        stages += gradient_stages(options, methods, rows, units)
    with progress_bar("decompose", stages, "" if quick else QUICKER) as progress:
        kind = partial(BlockLaboratory, block_size=size) if size else Laboratory
        lab = kind(options, loaded, rows, methods[0].objective, progress)
        if settings.gradient:
            progress.gradient_cost = gradient_cost(lab, methods[0])
        entries = measure_losses(lab, methods)
        if settings.gradient:
            entries |= measure_gradients(lab, methods, entries)
    return entries, lab.meter.forwards
