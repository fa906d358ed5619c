"""``decompose objective.kind=dpo``: what each method does to the noise of margin, loss and gradient of preferences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stabledllm.build import build_method, loading_options
from stabledllm.config.settings import DecomposeSettings
from stabledllm.errors import UserError
from stabledllm.lab.from_settings import build_probing
from stabledllm.lab.pair_density import PairProbe, pairs_in
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.noise import QUANTITIES, Candidate, PairNoise, measure_pairs
from stabledllm.preference.reference import check_reference
from stabledllm.preference_checks import views_of
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.showing import bar

RECORD, SCHEMA = "preference_noise.json", 1
STANDARD, APART = "standard", "standard, draws not shared"
DEFAULT = (
    "multisample4", "mirror", "fixedcount", "strats", "lowdisc", "complement", "lowdisc+fixedcount",
    "lowdisc+complement",
)  # fmt: skip
"""Compared beside Standard and Standard without shared draws, where their views divide the budget."""


def run_pair_noise(settings: DecomposeSettings, say: Callable[[str], None] = print) -> dict:
    """Measure, write ``preference_noise.json`` into ``settings.out`` and return it.

    Raises:
        UserError: bad data, models that do not load, or too few pairs.
    """
    started, dpo = time.perf_counter(), settings.dpo
    options = loading_options(settings)
    policy, reference = (load_model(name, **options) for name in (settings.model, dpo.reference))
    check_reference(policy, reference)
    for loaded in (policy, reference):
        place(loaded.model)
    every = pairs_in(settings, policy, say)
    pairs, others = every[: dpo.pairs], every[dpo.pairs :]
    if len(pairs) < 2:
        raise UserError(f"data '{settings.data.train}': expected at least 2 pairs, found {len(pairs)}.")
    chosen = with_densities(candidates(settings), settings, policy, reference, others)
    with bar(len(chosen) * len(pairs), "preferences", "pair") as shown:
        measured = measure_pairs(
            policy.model, reference.model, pairs, chosen, DPOLoss(dpo.beta), repeats=dpo.repeats, seed=settings.seed,
            parameters=settings.grad.parameters, progress=shown.update,
        )  # fmt: skip
    record = {
        "schema": SCHEMA,
        "model": settings.model,
        "reference": dpo.reference,
        "data": settings.data.train,
        "pairs": len(pairs),
        "config": settings.model_dump(),
        "densities": {each.name: _shown(each.estimator.density) for each in chosen if each.estimator.density},
        "methods": [_row(noise, measured[0]) for noise in measured],
        "seconds": time.perf_counter() - started,
        "versions": versions(),
        "device": device_name(next(policy.model.parameters()).device),
    }
    record["sentence"], record["recommended"] = _advice(measured)
    write_json(Path(settings.out) / RECORD, record)
    return record


def candidates(settings: DecomposeSettings) -> list[Candidate]:
    """The estimators to measure at the budget, Standard first, then Standard whose draws are not shared."""
    budget, eps = settings.dpo.budget, settings.objective.eps
    names = settings.methods if "methods" in settings.model_fields_set else list(DEFAULT)
    names = [n for n in names if n != STANDARD and budget % views_of(OfParts(n)) == 0]

    def of(name: str) -> BoundEstimator:
        return BoundEstimator(name, budget, eps=eps)

    both = [Candidate(STANDARD, of(STANDARD)), Candidate(APART, of(STANDARD), shared=False)]
    return both + [Candidate(name, of(name)) for name in dict.fromkeys(names)]


def with_densities(
    candidates: Sequence[Candidate],
    settings: DecomposeSettings,
    policy: LoadedModel,
    reference: LoadedModel,
    others: Sequence[Pair],
) -> list[Candidate]:
    """The candidates, those with ``ppots`` with a density that is fitted to pairs which are not measured.

    Raises:
        UserError: too few pairs beside those that are measured, or models that do not differ.
    """
    needing = [each.name for each in candidates if OfParts(each.name).needs_p]
    if needing and len(others) < 2:
        raise UserError(
            f"data '{settings.data.train}': expected at least 2 pairs beside the {settings.dpo.pairs} that are "
            f"measured, to fit p(t) of '{needing[0]}' to, found {len(others)}; give more, or a smaller dpo.pairs."
        )
    probe = PairProbe(
        policy, reference, DPOLoss(settings.dpo.beta), settings.dpo.budget, build_probing(settings.probe), settings.seed
    )
    fitted = {name: probe.fit(build_method(name, settings), others).sampler for name in needing}

    def of(each: Candidate) -> Candidate:
        return replace(each, estimator=replace(each.estimator, density=fitted.get(each.name)))

    return [of(each) for each in candidates]


def _shown(density: Tabulated) -> list[float]:
    """A density at as many equal places of t as a reader needs."""
    at = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    return [round(p, 4) for p in density.log_prob(at).exp().tolist()]


def _row(noise: PairNoise, standard: PairNoise) -> dict:
    over = {name: noise.over(standard, name).as_dict() for name in QUANTITIES}
    return noise.as_dict() | {"over_standard": over}


def _advice(measured: list[PairNoise]) -> tuple[str, str]:
    """Which method to train with: the least gradient noise, if it is told apart from Standard's."""
    standard, apart, *others = measured
    shared = apart.over(standard, "margin")
    text = ""
    if shared.is_known and shared.below_one is False:
        text = (
            f"Without shared draws the margin has {shared.value:.3g} ({shared.ci_low:.3g} to {shared.ci_high:.3g}) "
            f"times the noise. "
        )
    best = min(others, key=lambda noise: noise.mean("gradient").value, default=standard)
    ratio = best.over(standard, "gradient")
    if best is standard or ratio.below_one is not True:
        return (
            text + "No method's gradient noise is told apart from Standard's; measure more pairs or repeats.",
            STANDARD,
        )
    return (
        f"{text}{best.name} has {ratio.value:.2g} ({ratio.ci_low:.2g} to {ratio.ci_high:.2g}) of Standard's gradient "
        f"noise for the same forwards: train with method={best.name}"
        f"{' and p_of_t of stabledllm fit' if OfParts(best.name).needs_p else ''}."
    ), best.name
