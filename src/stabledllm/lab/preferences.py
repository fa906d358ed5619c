"""``decompose objective.kind=dpo``: what each method does to the noise of margin, loss and gradient of preferences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stabledllm.build import build_method, loading_beside, loading_options
from stabledllm.config.run_folder import MEASURED
from stabledllm.config.settings import DecomposeSettings
from stabledllm.errors import UserError
from stabledllm.lab.from_settings import build_probing
from stabledllm.lab.noise_advice import STANDARD, advise, rows_of
from stabledllm.lab.pair_density import PairProbe, pairs_in
from stabledllm.lab.recommendation import keys_of_recipe
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.noise import Candidate, measure_pairs
from stabledllm.preference.reference import check_reference
from stabledllm.preference_checks import views_of
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.showing import bar
from stabledllm.stats.intervals import Ratio

KIND = "preference_noise"
RECORD = MEASURED[KIND]
APART = "standard, draws not shared"
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
    policy = load_model(settings.model, **loading_options(settings))
    reference = load_model(dpo.reference, **loading_beside(settings, dpo.reference))
    check_reference(policy, reference)
    for loaded in (policy, reference):
        place(loaded.model)
    every = pairs_in(settings, policy, say)
    pairs, unmeasured = every[: dpo.pairs], every[dpo.pairs :]
    if len(pairs) < 2:
        raise UserError(f"data '{settings.data.train}': expected at least 2 pairs, found {len(pairs)}.")
    chosen = with_densities(candidates(settings), settings, policy, reference, unmeasured)
    with bar(len(chosen) * len(pairs), "preferences", "pair") as shown:
        measured = measure_pairs(
            policy.model, reference.model, pairs, chosen, DPOLoss(dpo.beta), repeats=dpo.repeats, seed=settings.seed,
            parameters=settings.grad.parameters, progress=shown.update,
        )  # fmt: skip
    standard, apart, *others = measured
    multiples = [views_of(OfParts(noise.name)) for noise in (standard, standard, *others)]
    rows = [
        row | {"multiple": multiple, "between": noise.between}
        for row, noise, multiple in zip(rows_of(measured, others), measured, multiples, strict=True)
    ]
    record = {
        "schema": f"stabledllm/{KIND}/1",
        "objective": "dpo",
        "model": settings.model,
        "reference": dpo.reference,
        "start": dpo.reference,
        "data": settings.data.train,
        "pairs": len(pairs),
        "config": settings.model_dump(),
        "recipe": keys_of_recipe(settings) | {"dpo": {"beta": dpo.beta}},
        "densities": {each.name: _shown(each.estimator.density) for each in chosen if each.estimator.density},
        "methods": rows,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
        "device": device_name(next(policy.model.parameters()).device),
    }
    sentences, advice = _sharing(apart.over(standard, "margin")), advise(record) if others else None
    record["sentences"] = sentences + (list(advice.sentences) if advice else [])
    record["recommended"] = advice.method if advice else STANDARD
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
    needing = [each.name for each in candidates if OfParts(each.estimator.method).needs_p]
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


def _sharing(ratio: Ratio) -> list[str]:
    """What sharing the draws of policy and reference brings, where it is told."""
    if not ratio.is_known or ratio.below_one is not False:
        return []
    return [
        f"Without shared draws the margin has {ratio.value:.3g} ({ratio.ci_low:.3g} to {ratio.ci_high:.3g}) times the "
        f"noise."
    ]
