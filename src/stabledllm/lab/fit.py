"""The run of ``stabledllm fit``, and how every fit of p(t) is saved and printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from stabledllm.build import build_method, build_model, set_form
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import load_rows
from stabledllm.data.rows import TokenRow, marks_in
from stabledllm.lab.probe_and_fit import probe_and_fit
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.fits import check_fitted, check_marks, check_model
from stabledllm.noise.methods import Method
from stabledllm.ppots.record import FittedDensity

Say = Callable[[str], None]


def run_fit(settings: TrainSettings, path: Path, say: Say) -> FittedDensity:
    """Probe the training rows, fit p(t) for the method, write it to ``path`` and return it.

    Raises:
        UserError: a method without ppots, or a model or rows that do not suit it.
    """
    method = build_method(settings.method, settings)
    check_fitted(method)
    loaded = build_model(settings)
    check_model(method, loaded.name, loaded.autoregressive)
    set_form(loaded, settings)
    rows, note = load_rows(settings.data.train, loaded.tokenizer, settings.data, "train", settings.data.train_rows)
    say(note)
    check_marks(method, marks_in(rows))
    density = fitted_for(settings, method, loaded, rows)
    save_fit(density, path, say)
    for line in _details(density.record):
        say(line)
    return density


def fitted_for(settings: TrainSettings, method: Method, loaded: LoadedModel, rows: list[TokenRow]) -> FittedDensity:
    """The density p(t) for a run with these settings, probed on its training rows; nothing is written."""
    size = settings.block_size
    return probe_and_fit(loaded, rows, method, settings.ppots, settings.seed, settings.batch, block_size=size)


def save_fit(density: FittedDensity, path: Path, say: Say) -> None:
    """Write a fit, and print its summary and its notes."""
    density.save(path)
    say(density.summary())
    for note in density.notes:
        say(f"note: {note}")


def _details(record: dict) -> Iterator[str]:
    """Lines to print: the quality of the output layer as a proxy, where it was checked, and EPR's parameters."""
    if proxy := record.get("proxy"):
        yield (
            f"the output layer for the whole gradient: correlation over t {proxy['correlation']:.3f}, second moment "
            f"{proxy['excess']:+.1%} against p fitted to the gradient itself"
        )
    if parameters := record["parameters"]:
        yield "EPR: " + ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items())
