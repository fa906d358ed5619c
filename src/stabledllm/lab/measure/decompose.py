"""The entries of ``decomposition.json``: A, B, C, curves over t, and every method at equal compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stabledllm.gradient.mask_split import MaskSplit
from stabledllm.lab.measure.by_length import by_length
from stabledllm.lab.measure.gradient import GradientLaboratory
from stabledllm.lab.measure.gradient_notes import note_of_split
from stabledllm.lab.measure.laboratory import Laboratory
from stabledllm.lab.measure.plan import ABC, ADAM, GRADIENT_ABC, PROBE, SPLIT, gradient_stage
from stabledllm.lab.measure.probe_and_fit import check_probe
from stabledllm.method_checks import check_fixed, check_measured
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.record import FittedDensity, profile_record
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.variance.comparison import compare_methods, mirror_condition
from stabledllm.variance.components import decompose

SCHEMA = "stabledllm/decomposition/1"
LEAST_ROWS = 4
"""Least number of rows of which a variance is measured."""
_SHOWN = 256
"""Number of points at which densities are recorded for the figures."""


def check_methods(methods: Sequence[Method], gradient: bool) -> None:
    """Refuse methods that no variance can be measured of; the first is Standard.

    Raises:
        UserError: an infinite variance, a density that follows training, or the gradient under ``cosine``.
    """
    standard = methods[0]
    check_measured(standard.objective, gradient)
    for method in methods:
        check_fixed(method)


def record_of(
    entries: dict, *, model: str, data: str, config: dict, seed: int, device: torch.device | str, seconds: float,
    forwards: int, note: str,
) -> dict:  # fmt: skip
    """The record of a decomposition from what was measured, with where it came from.

    Args:
        note: what is said of the rows, first among the notes.
    """
    return {
        "schema": SCHEMA,
        "model": model,
        "data": data,
        "kind": "mdm",
        "config": config,
        "versions": versions(),
        "device": device_name(device),
        "seed": seed,
        "seconds": seconds,
        "forward_passes": forwards,
        **entries,
        "notes": [note, *entries["notes"]],
    }


def measure_losses(lab: Laboratory, methods: Sequence[Method]) -> dict:
    """The entries of the record that are about the loss; the first method is Standard.

    Raises:
        UserError: too few rows to fit a method's p(t) to.
    """
    standard, progress = methods[0], lab.progress
    for method in methods:
        if method.needs_p:
            check_probe(method, len(lab.rows), lab.options.probe.rows, lab.block_size, "probe.rows")
    mirror = _mirror(standard)
    progress.stage(ABC)
    nested = lab.nested(standard)
    parts = decompose(nested)
    tokens = torch.tensor([lab.rows[i].response_length for i in nested.rows.tolist()])
    progress.stage(PROBE)
    both = lab.profile(mirror)
    curves, plain = profile_record(both), profile_record(lab.profile(standard))
    results, densities, notes = [], [], []
    for method in methods:
        progress.stage(method.name)
        density = lab.density(method) if method.needs_p else None
        if density:
            densities.append(_shown(density, standard.objective))
            notes += [f"{method.name}: {note}" for note in density.notes]
        results.append(lab.result(method, density))
    entries = compare_methods(results, parts.data)
    cost = lab.cost(mirror, Uniform()) / lab.cost(standard, Uniform())
    alone = next((entry for entry in entries if entry["method"] == "mirror"), None)
    if heavy := [r.method for r in results if r.measured.heavy_tail]:
        notes.append(
            f"{', '.join(heavy)}: a few draws at small t decide the loss's variance, so that its error is not known."
        )
    return {
        "loss": parts.as_dict(),
        "gradient": None,
        **lab.further(nested),
        "curves": {
            "t": standard.objective.ratio(torch.tensor(plain["t"], dtype=torch.float64)).tolist(),
            **{name: plain[name] for name in ("g", "g_stderr", "v", "v_stderr")},
            "v_mirror": curves["v_views"],
            "v_mirror_stderr": curves["v_views_stderr"],
            "rho": curves["rho"],
            "rho_stderr": curves["rho_stderr"],
        },
        "densities": densities,
        "by_length": by_length(tokens, lambda rows: decompose(nested.select(rows))),
        "mirror": mirror_condition(both, cost, nested, parts, alone, shared=standard.objective.tokens == "gift"),
        "methods": entries,
        "notes": notes,
    }


def measure_gradients(lab: Laboratory, methods: Sequence[Method], measured: dict) -> dict:
    """The entries of the record with the gradient's noise, that of every method beside its loss's in ``measured``."""
    options, progress = lab.options, lab.progress
    progress.stage(GRADIENT_ABC)
    gradients = lab.gradients(methods[0])
    parts, floor = gradients.decomposition(), gradients.floor()
    split = _split(lab, gradients)
    progress.stage(ADAM)
    gradients.steps.precondition(rows=options.forwards, steps=options.grad.steps, seed=options.seed)
    entries = []
    for method, entry in zip(methods, measured["methods"], strict=True):
        progress.stage(gradient_stage(method))
        entries.append(entry | {"gradient": gradients.result(method, *lab.drawn[method.name])})
    record = parts.as_dict() | ({"floor": floor.as_dict()} if floor else {})
    record |= {"split": split.as_dict()} if split else {}
    record |= dict.fromkeys(gradients.unknown)
    notes = [*measured["notes"], *gradients.notes(parts, floor, entries), *([note_of_split(split)] if split else [])]
    return {"gradient": record, "methods": entries, "notes": notes, **gradients.further(measured)}


def _split(lab: Laboratory, gradients: GradientLaboratory) -> MaskSplit | None:
    """What A of the gradient is made of, as a stage of its own."""
    if lab.options.grad.split_rows and lab.block_size is None and "split" not in gradients.unknown:
        lab.progress.stage(SPLIT)
    return gradients.split()


def _shown(density: FittedDensity, objective: Objective) -> dict:
    """The entry of ``densities`` for one method: p at :data:`_SHOWN` mask ratios."""
    t = (torch.arange(_SHOWN, dtype=torch.float64) + 0.5) / _SHOWN
    return {
        "method": density.method,
        "source": density.record["source"],
        "t": objective.ratio(t).tolist(),
        "p": (density.sampler.log_prob(t).exp() * objective.density_at(t)).tolist(),
    }


def _mirror(standard: Method) -> Method:
    return Method.parse("mirror", standard.options, standard.objective)
