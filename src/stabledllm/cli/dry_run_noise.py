"""What measuring the noise of preferences or of policy gradients would draw, for ``--dry-run``."""

from __future__ import annotations

from typing import NamedTuple

from stabledllm.config.run_folder import MEASURED
from stabledllm.config.settings import DecomposeSettings


class Measurement(NamedTuple):
    """``beside``: models beside the policy, in words. ``lines``: what is done, how often. ``file``: of the record."""

    beside: str
    lines: list[tuple[str, str]]
    file: str


def of_noise(settings: DecomposeSettings) -> Measurement:
    """The measurement that the objective's kind asks for, ``dpo`` or ``grpo``."""
    return _of_pairs(settings) if settings.objective.kind == "dpo" else _of_policy(settings)


def _of_pairs(settings: DecomposeSettings) -> Measurement:
    from stabledllm.lab.preferences import candidates

    dpo, methods = settings.dpo, candidates(settings)
    total = dpo.pairs * dpo.repeats * 2 * dpo.budget * len(methods)
    drawn = f"{3 * total:,} forward passes, {total:,} with gradients, for {len(methods)} estimators"
    return Measurement(f"; against {dpo.reference}", [("draw", drawn)], MEASURED["preference_noise"])


def _of_policy(settings: DecomposeSettings) -> Measurement:
    from stabledllm.lab.policy import candidates
    from stabledllm.policy.noise import EXACT_REPEATS

    grpo, estimators = settings.grpo, candidates(settings)
    each = grpo.repeats * sum(one.forwards for one in estimators) + EXACT_REPEATS * grpo.exact
    total = grpo.prompts * grpo.group * each
    beside = [f"; {key} {name}" for key in ("old", "reference") if (name := getattr(grpo, key))]
    models = 2 + len(beside)  # the policy's values first, then the same with a graph
    answered = (
        f"at most {grpo.prompts * grpo.tries} prompts, {grpo.group} responses of {grpo.rollout.length} tokens each; "
        f"reward {' + '.join(grpo.reward)}"
    )
    drawn = (
        f"about {models * total:,} forward passes, {total:,} with gradients, for {len(estimators)} estimators on "
        f"{grpo.prompts} prompts"
    )
    return Measurement("".join(beside), [("answer", answered), ("draw", drawn)], MEASURED["policy_noise"])
