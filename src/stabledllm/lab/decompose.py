"""The measurement that ``stabledllm decompose`` runs: A, B, C, curves over t, and every method at equal compute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from stabledllm.build import build_method, build_methods, loading_options
from stabledllm.config.settings import DecomposeSettings
from stabledllm.data.bundle import load_rows
from stabledllm.data.images import with_image_defaults
from stabledllm.data.rows import TokenRow, marks_in
from stabledllm.errors import UserError
from stabledllm.lab.autoregressive import measure_autoregressive
from stabledllm.lab.gradient import GradientLaboratory
from stabledllm.lab.laboratory import Laboratory
from stabledllm.lab.recommendation import is_comparable, recommend
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.densities import Uniform
from stabledllm.noise.fits import check_finite_variance, check_fixed, check_marks, check_model
from stabledllm.noise.methods import Method
from stabledllm.ppots.profile import rate_edges
from stabledllm.ppots.record import FittedDensity, profile_record
from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.variance.comparison import compare_methods, mirror_condition
from stabledllm.variance.components import by_length, decompose, nested_losses
from stabledllm.variance.low_rates import LowRates

SCHEMA = "stabledllm/decomposition/1"
_SHOWN = 256
"""Number of points at which densities are recorded for the figures."""


def run_decompose(settings: DecomposeSettings, say: Callable[[str], None] = print) -> dict:
    """Measure, write ``decomposition.json`` into ``settings.out`` and return it.

    Raises:
        UserError: bad data, an unknown method, or too few rows to measure anything.
    """
    started = time.perf_counter()
    settings = with_image_defaults(settings)
    methods = build_methods(settings)
    standard = methods[0]
    if settings.gradient and standard.objective.counts == "cosine":
        raise UserError("decompose: --gradient and objective.weighting 'cosine' contradict; only the loss is measured.")
    check_finite_variance(standard, "decompose")
    for method in methods:
        check_fixed(method)
    loaded = load_model(settings.model, **loading_options(settings))
    if size := getattr(loaded.model.config, "block_size", None):
        raise UserError(
            f"model '{settings.model}': expected one of whole responses, found one trained in blocks of {size}."
        )
    rows, note = load_rows(settings.data.train, loaded.tokenizer, settings.data, "train", settings.data.train_rows)
    say(note)
    if len(rows) < 4:
        raise UserError(
            f"data '{settings.data.train}': expected at least 4 rows to measure variances, found {len(rows)}."
        )
    if loaded.autoregressive:
        measured, forwards = measure_autoregressive(settings, loaded, rows)
    else:
        measured, forwards = _measure_all(settings, loaded, rows, methods)
    device = next(loaded.model.parameters()).device
    record = {
        "schema": SCHEMA,
        "model": settings.model,
        "data": settings.data.train,
        "kind": "mdm",
        "config": settings.model_dump(),
        "versions": versions(),
        "device": device_name(device),
        "seed": settings.seed,
        "seconds": time.perf_counter() - started,
        "forward_passes": forwards,
        **measured,
        "notes": [note, *measured["notes"]],
    }
    if is_comparable(record):
        record["recommendation"] = recommend(record).as_dict()
    write_json(Path(settings.out) / "decomposition.json", record)
    return record


def _measure_all(
    settings: DecomposeSettings, loaded: LoadedModel, rows: list[TokenRow], methods: list[Method]
) -> tuple[dict, int]:
    """The entries of the record for a masked diffusion model, and the number of forward passes they took."""
    for method in methods:
        check_model(method, loaded.name, loaded.autoregressive)
        check_marks(method, marks_in(rows))
    with tqdm(total=_forwards(settings, methods, len(rows)), desc="decompose", unit="fwd") as bar:
        lab = Laboratory(settings, loaded, rows, methods[0].objective, bar)
        entries = _measure(lab, methods, bar)
        if settings.gradient:
            entries |= _measure_gradient(lab, loaded, methods, entries, bar)
    return entries, lab.meter.forwards


def _measure(lab: Laboratory, methods: list[Method], bar: tqdm) -> dict:
    """The entries of the record that are about the loss."""
    settings, standard, mirror = lab.settings, methods[0], build_method("mirror", lab.settings)
    bar.set_postfix_str("A, B, C")
    nested = nested_losses(
        lab.meter,
        standard,
        rows=settings.rows,
        rates=settings.rates,
        masks=settings.masks,
        seed=settings.seed,
        design=settings.design,
        some_masked=True,
    )
    parts = decompose(nested)
    lab.low = LowRates.of(nested, lab.meter.sizes(standard)[nested.rows], lab.meter.objective.eps)
    tokens = torch.tensor([lab.rows[i].response_length for i in nested.rows.tolist()])
    both = lab.profile(mirror)
    bar.set_postfix_str("probe")
    curves, plain = profile_record(both), profile_record(lab.profile(standard))
    results, densities, notes = [], [], []
    for method in methods:
        bar.set_postfix_str(method.name)
        density = lab.density(method) if method.needs_p else None
        if density:
            densities.append(_shown(density))
            notes += [f"{method.name}: {note}" for note in density.notes]
        results.append(lab.result(method, density))
    entries = compare_methods(results, parts.data)
    alone = next((entry for entry in entries if entry["method"] == "mirror"), None)
    if heavy := [r.method for r in results if r.measured.heavy_tail]:
        notes.append(
            f"{', '.join(heavy)}: a few draws at small t decide the loss's variance, so that its error is not known."
        )
    return {
        "loss": parts.as_dict(),
        "gradient": None,
        "curves": {
            "t": plain["t"],
            **{name: plain[name] for name in ("g", "g_stderr", "v", "v_stderr")},
            "v_mirror": curves["v_views"],
            "v_mirror_stderr": curves["v_views_stderr"],
            "rho": curves["rho"],
            "rho_stderr": curves["rho_stderr"],
        },
        "densities": densities,
        "by_length": by_length(tokens, lambda rows: decompose(nested.select(rows))),
        "mirror": mirror_condition(both, lab.cost(mirror, Uniform()), nested, parts, alone),
        "methods": entries,
        "notes": notes,
    }


def _measure_gradient(lab: Laboratory, loaded: LoadedModel, methods: list[Method], measured: dict, bar: tqdm) -> dict:
    """The entries of the record with the gradient's noise, that of every method beside its loss's in ``measured``."""
    bar.set_postfix_str("gradient: A, B, C")
    gradients = GradientLaboratory(lab.settings, loaded, lab.rows, methods[0], bar.update)
    parts, floor = gradients.decomposition(), gradients.floor()
    bar.set_postfix_str("gradient: Adam's second moments")
    gradients.steps.precondition(rows=lab.settings.forwards, steps=lab.settings.grad.steps, seed=lab.settings.seed)
    entries = []
    for method, entry in zip(methods, measured["methods"], strict=True):
        bar.set_postfix_str(f"gradient: {method.name}")
        entries.append(entry | {"gradient": gradients.result(method, *lab.drawn[method.name])})
    notes = list(measured["notes"])
    notes.append(
        f"The floor of one counted view a row: no density of t brings the gradient's noise at equal compute below "
        f"{floor.shared.value:.3g} ± {floor.shared.stderr:.2g} of Standard's ({floor.lowdisc.value:.3g} with low "
        f"discrepancy); a density for every row, known beforehand, would reach {floor.own.value:.3g}."
    )
    if parts.heavy_tail:
        notes.append(
            f"The squared gradient norm has a heavy tail under Standard's iid t (Pareto-k {parts.pareto_k:.2f}): "
            f"A, B and C were measured count by count; drawn steps miss the tail, and their errors are too small."
        )
    if parts.heavy_rows:
        notes.append(_rows_note(parts.rows_pareto_k))
    record = parts.as_dict() | {"floor": floor.as_dict()}
    return {"gradient": record, "methods": entries, "notes": notes}


def _rows_note(shape: float) -> str:
    """The note on how a few rows' gradients affect the errors, by their Pareto-k, NaN for too few rows."""
    if math.isnan(shape):
        return (
            "Whether a few rows decide A of the gradient cannot be told from so few (no Pareto-k): its error may be "
            "too small; measure more rows, with grad.rows."
        )
    return (
        f"So have the rows themselves (Pareto-k {shape:.2f}): a few rows decide A, and its error is too small. Ratios "
        f"of methods, taken on the same rows, suffer less."
    )


def _shown(density: FittedDensity) -> dict:
    """The entry of ``densities`` for one method: p at :data:`_SHOWN` points."""
    t = (torch.arange(_SHOWN, dtype=torch.float64) + 0.5) / _SHOWN
    return {
        "method": density.method,
        "source": density.record["source"],
        "t": t.tolist(),
        "p": density.sampler.log_prob(t).exp().tolist(),
    }


def _forwards(settings: DecomposeSettings, methods: list[Method], rows: int) -> int:
    """Number of forwards that the measurement will take, for the progress bar."""
    cells = (
        len(rate_edges(settings.rates, settings.objective.eps)) - 1 if settings.design == "cells" else settings.rates
    )
    nested = min(settings.rows, rows) * cells * settings.masks
    mirror = build_method("mirror", settings)
    views = {(m.masker, m.views, m.syrm): m.views for m in (*methods, mirror)}
    cells = [len(rate_edges(settings.probe.rates, settings.objective.eps, v.switches)) - 1 for v in views.values()]
    probed = min(settings.probe.rows, rows) * settings.probe.masks
    probed *= sum(v.count * b for v, b in zip(views.values(), cells, strict=True))
    return nested + probed + settings.steps * settings.forwards * len(methods)
