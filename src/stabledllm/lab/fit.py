"""The run of ``stabledllm fit``, and how every fit of p(t) is saved and printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stabledllm.build import build_method, build_model, set_form
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import load_rows
from stabledllm.data.rows import TokenRow, marks_in
from stabledllm.lab.bar import progress_bar
from stabledllm.lab.from_settings import build_probing
from stabledllm.lab.measure.plan import probe_forwards
from stabledllm.lab.measure.probe_and_fit import probe_and_fit
from stabledllm.lab.pair_density import fit_to_pairs
from stabledllm.lab.quick import NOTE, QUICKER
from stabledllm.method_checks import check_fitted, check_marks, check_model
from stabledllm.models.loading import LoadedModel
from stabledllm.models.names import in_own_blocks
from stabledllm.noise.methods import Method
from stabledllm.ppots.record import FittedDensity
from stabledllm.reports.printed import fit_details
from stabledllm.reports.table import filled
from stabledllm.runtime.device import place

Say = Callable[[str], None]


def run_fit(settings: TrainSettings, path: Path, say: Say, *, quick: bool = False) -> FittedDensity:
    """Probe the training rows, fit p(t) for the method, write it to ``path`` and return it.

    Args:
        quick: whether the settings are those of ``--quick``, which the record's notes then say.

    Raises:
        UserError: a method without ppots, or a model or rows that do not suit it.
    """
    settings = in_own_blocks(settings)
    method = build_method(settings.method, settings)
    check_fitted(method)
    to = fit_to_pairs if settings.objective.kind == "dpo" else _fit_to_rows
    density = to(settings, method, say, "" if quick else QUICKER)
    if quick:
        density.record["notes"] = [NOTE, *density.record.get("notes", [])]
    save_fit(density, path, say)
    for line in fit_details(density.record):
        say(line)
    return density


def _fit_to_rows(settings: TrainSettings, method: Method, say: Say, quicker: str) -> FittedDensity:
    loaded = build_model(settings)
    place(loaded.model)
    check_model(method, loaded.name, loaded.autoregressive)
    set_form(loaded, settings)
    data = settings.data
    rows, note = load_rows(
        data.train, loaded.tokenizer, data, "train", data.train_rows, say, wanted=settings.ppots.rows
    )
    say(note)
    check_marks(method, marks_in(rows))
    return fitted_for(settings, method, loaded, rows, quicker)


def fitted_for(
    settings: TrainSettings, method: Method, loaded: LoadedModel, rows: list[TokenRow], quicker: str = ""
) -> FittedDensity:
    """The density p(t) for a run with these settings, probed on its training rows; nothing is written.

    Args:
        quicker: what is said of a quicker way where it takes long.
    """
    options, size = build_probing(settings.ppots), settings.block_size
    with progress_bar(f"probe {method.name}", probe_forwards(method, options, rows), quicker) as progress:
        return probe_and_fit(
            loaded, rows, method, options, settings.seed, settings.batch, block_size=size,
            one_t=settings.block_t == "row", progress=progress,
        )  # fmt: skip


def save_fit(density: FittedDensity, path: Path, say: Say) -> None:
    """Write a fit, and print its summary and its notes."""
    density.save(path)
    say(filled(density.summary()))
    for note in density.notes:
        say(filled(f"note: {note}"))
