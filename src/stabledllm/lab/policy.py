"""``decompose objective.kind=grpo``: what each estimator does to the noise of ratio, loss and gradient of a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from stabledllm.build import loading_beside, loading_options
from stabledllm.config.run_folder import MEASURED
from stabledllm.config.settings import DecomposeSettings
from stabledllm.config.settings.policy import FORWARDS, GRPOSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.lab.answered import answered_groups
from stabledllm.lab.noise_advice import STANDARD, advise, rows_of
from stabledllm.lab.preferences import APART
from stabledllm.lab.preferences import DEFAULT as METHODS
from stabledllm.lab.recommendation import keys_of_recipe, set_keys
from stabledllm.likelihood.named import estimator_of
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.of_parts import OfParts
from stabledllm.policy.loss import GRPOLoss
from stabledllm.policy.noise import Candidate, GroupNoise, Models, measure_groups
from stabledllm.preference.reference import check_reference
from stabledllm.preference_checks import views_of
from stabledllm.rewards.named import build_rewards
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.showing import bar
from stabledllm.stats.intervals import Ratio

KIND = "policy_noise"
RECORD = MEASURED[KIND]
EXACT = "lowdisc+fixedcount"
"""The method of the estimate that the others are held against."""
OF_BOUND = ("method", "espo")
"""Estimators of the bound without bias; the others estimate something else."""
_OF_TRAINING = [name for name in GRPOSettings.model_fields if name not in ("estimator", "budget", "inner", "reference")]


def run_policy_noise(settings: DecomposeSettings, say: Callable[[str], None] = print) -> dict:
    """Answer prompts, measure, write ``policy_noise.json`` into ``settings.out`` and return it.

    Raises:
        UserError: bad data, models that do not load or do not fit each other, rewards that fail, or too few prompts
            whose responses have unequal rewards.
    """
    started, grpo = time.perf_counter(), settings.grpo
    rewards = build_rewards(grpo)
    policy, old, reference = _load(settings)
    data = settings.data.model_copy(update={"validation_share": 0.0, "validation": None, "test": None})
    prompts = load_bundle(data, policy.tokenizer, say).prompts["train"]
    answered = answered_groups(old or policy, prompts, rewards, settings, say)
    chosen = candidates(settings)
    with bar((1 + len(chosen)) * len(answered.groups), "policy gradients", "prompt") as shown:
        measured = measure_groups(
            Models(policy.model, old and old.model, reference and reference.model), answered.groups, chosen,
            exact_of(settings), repeats=grpo.repeats, seed=settings.seed, parameters=settings.grad.parameters,
            progress=shown.update,
        )  # fmt: skip
    compared = [noise for noise in measured[2:] if noise.of_bound]
    rows = [
        row | {"multiple": _multiple(noise.name), "preset": noise.name if noise.name in grpo.presets else None}
        for row, noise in zip(rows_of(measured, compared), measured, strict=True)
    ]
    record = {
        "schema": f"stabledllm/{KIND}/1",
        "objective": "grpo",
        "model": settings.model,
        "old": grpo.old,
        "reference": grpo.reference if grpo.beta else None,
        "start": settings.model,
        "data": settings.data.train,
        "prompts": len(answered.groups),
        "answered": answered.tried,
        "equal_rewards": answered.equal,
        "mean_reward": answered.mean_reward,
        "config": settings.model_dump(),
        "recipe": keys_of_recipe(settings) | {"grpo": _keys(settings)},
        "typed": _typed(settings),
        "methods": rows,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
        "device": device_name(next(policy.model.parameters()).device),
    }
    advice = advise(record) if compared else None
    record["sentences"] = [*_sentences(settings, measured), *(advice.sentences if advice else [])]
    record["recommended"] = advice.method if advice else STANDARD
    write_json(Path(settings.out) / RECORD, record)
    return record


def candidates(settings: DecomposeSettings) -> list[Candidate]:
    """The estimators to measure: Standard, Standard whose draws are not shared, other methods, published ones."""
    grpo = settings.grpo
    names = settings.methods if "methods" in settings.model_fields_set else list(METHODS)
    names = [n for n in dict.fromkeys(names) if n != STANDARD and grpo.budget % views_of(OfParts(n)) == 0]
    ours = [_of_method(settings, name, grpo.budget, name) for name in names]
    standard = _of_method(settings, STANDARD, grpo.budget, STANDARD)
    apart = _of_method(settings, STANDARD, grpo.budget, APART, shared=False)
    return [standard, apart, *ours, *(_of_preset(settings, name) for name in dict.fromkeys(grpo.presets))]


def exact_of(settings: DecomposeSettings) -> Candidate:
    """The estimate with many forwards."""
    return _of_method(settings, EXACT, settings.grpo.exact, "exact")


def _of_method(settings: DecomposeSettings, method: str, budget: int, name: str, *, shared: bool = True) -> Candidate:
    grpo = settings.grpo.model_copy(update={"estimator": "method", "budget": budget})
    how = estimator_of(grpo, method, eps=settings.objective.eps)
    # Ratios of draws that are not shared are clipped by their noise, which shortens the gradient.
    return Candidate(name, how, loss_of(grpo), budget, of_bound=shared, shared=shared)


def _of_preset(settings: DecomposeSettings, name: str) -> Candidate:
    each = FORWARDS[name]
    budget = each * max(1, round(settings.grpo.budget / each))
    grpo = settings.grpo.model_copy(update={"estimator": name, "budget": budget})
    how = estimator_of(grpo, STANDARD)
    return Candidate(name, how, loss_of(grpo), how.forwards, of_bound=name in OF_BOUND)


def loss_of(grpo: GRPOSettings) -> GRPOLoss:
    """The loss of responses under these settings."""
    return GRPOLoss(grpo.ratio_in_force, grpo.clip, grpo.clip_high, grpo.mean, grpo.beta, grpo.kl)


def _multiple(name: str) -> int:
    """The forwards of one draw of an estimator."""
    return FORWARDS.get(name) or views_of(OfParts(STANDARD if name == APART else name))


def _load(settings: DecomposeSettings) -> tuple[LoadedModel, LoadedModel | None, LoadedModel | None]:
    """The policy, the old policy where it is another, and the reference where there is a divergence."""
    grpo = settings.grpo
    policy = load_model(settings.model, **loading_options(settings))
    place(policy.model)

    def beside(name: str | None, key: str) -> LoadedModel | None:
        if name is None:
            return None
        loaded = load_model(name, **loading_beside(settings, name))
        check_reference(policy, loaded, key)
        place(loaded.model)
        return loaded

    return policy, beside(grpo.old, "grpo.old"), beside(grpo.reference if grpo.beta else None, "grpo.reference")


def _keys(settings: DecomposeSettings) -> dict:
    """The keys of training that are not as by default there; files of rewards are typed, and in no recipe."""
    found = {name: value for name, value in settings.grpo.model_dump().items() if name in _OF_TRAINING}
    keys = set_keys(found, GRPOSettings().model_dump())
    return {name: value for name, value in keys.items() if name != "reward" or not _typed(settings)}


def _typed(settings: DecomposeSettings) -> str:
    """What stands beside the recipe on the command line: rewards that are files, whose code a recipe may not name."""
    names = settings.grpo.reward
    return f"'grpo.reward=[{','.join(names)}]'" if any(".py:" in name for name in names) else ""


def _sentences(settings: DecomposeSettings, measured: list[GroupNoise]) -> list[str]:
    standard, apart, *others = measured
    out = []
    if settings.grpo.old is None:
        out.append(
            "The old policy is the model itself, as in the first step on its responses: on shared draws every ratio is "
            "1 and has no noise, so that the gradient's counts. With grpo.old=MODEL that of later steps is measured."
        )
    shared: Ratio = apart.over(standard, "log_ratio")
    if shared.is_known and shared.below_one is False:
        out.append(
            f"Without shared draws the log-ratio has {shared.value:.3g} ({shared.ci_low:.3g} to {shared.ci_high:.3g}) "
            f"times the noise."
        )
    if other := [noise for noise in others if not noise.of_bound]:
        cosines = ", ".join(f"{noise.name} {_shown(noise)}" for noise in other)
        out.append(
            f"No estimates of the bound: {cosines}, the cosine of the mean gradient with the bound's. That is no "
            f"noise; theirs is set beside Standard's in proportion to their own mean gradient."
        )
    return out


def _shown(noise: GroupNoise) -> str:
    cosine, _ = noise.direction()
    low, high = cosine.interval()
    known = low == low and high == high
    return f"{cosine.value:.2f} ({low:.2f} to {high:.2f})" if known else f"{cosine.value:.2f}"
