"""Checks that the keys of a run of policy gradients go together; each refusal is one sentence. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.config.settings.policy import FORWARDS, PUBLISHED
from stabledllm.errors import UserError
from stabledllm.method_checks import check_elbo
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference_checks import views_of
from stabledllm.response_checks import check_responses

if TYPE_CHECKING:
    from stabledllm.config.settings import DecomposeSettings, TrainSettings
    from stabledllm.config.settings.policy import GRPOSettings

_PROMPTS_ALONE = (
    "data.format: expected objective.kind=grpo for prompts alone, found none; write objective.kind=grpo, or leave "
    "data.format out."
)


def check_policy(run: TrainSettings) -> None:
    """Refuse prompts without a run that answers them, the reverse, and keys that mean nothing to policy gradients.

    Raises:
        UserError: such keys.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_policy(TrainSettings(objective={"kind": "grpo"}, group_by_length=True))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'group_by_length': expected false beside objective.kind=grpo, ...
    """
    if run.objective.kind != "grpo":
        if run.data.format == "prompts":
            raise UserError(_PROMPTS_ALONE)
        if "grpo" in run.model_fields_set and run.grpo.model_fields_set:
            raise UserError(
                "key 'grpo': expected objective.kind=grpo beside it, found none; write objective.kind=grpo."
            )
        return
    check_responses(run, form="prompts", hold="responses", beside="old policy", does="estimates")
    _check_loss(run)


def _check_loss(run: TrainSettings) -> None:
    """Refuse a mean over tokens with ratios of responses, and what no reference is needed for, or is missing."""
    grpo = run.grpo
    if grpo.mean == "token" and grpo.ratio_in_force != "token":
        raise UserError(
            f"key 'grpo.mean': expected response with grpo.ratio={grpo.ratio_in_force}, which has one ratio for each "
            f"response, found token; leave it out, or write grpo.ratio=token."
        )
    if not grpo.beta and (given := {"kl", "reference"} & grpo.model_fields_set):
        key = sorted(given)[0]
        if getattr(grpo, key) != type(grpo).model_fields[key].default:
            raise UserError(f"key 'grpo.{key}': expected grpo.beta above 0 beside it, found none; leave it out.")
    if grpo.reference == "kept":
        raise UserError(
            "key 'grpo.reference': expected copy, adapter or a model, since responses are not known before they are "
            "drawn, found kept."
        )
    if grpo.reference == "adapter" and not run.lora:
        raise UserError("key 'grpo.reference': expected 'lora' beside adapter, found a run that trains all weights.")


def check_policy_method(run: TrainSettings, method: OfParts) -> None:
    """Refuse a method that cannot estimate bounds, or whose views do not divide the budget.

    Raises:
        UserError: such a method.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_policy_method(TrainSettings(objective={"kind": "grpo"}, grpo={"budget": 3}), OfParts("mirror"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'grpo.budget': expected a multiple of the 2 views of 'mirror', found 3.
    """
    if run.objective.kind != "grpo":
        return
    if run.grpo.estimator != "method":
        if method.name != "standard":
            raise UserError(
                f"key 'method': expected standard beside grpo.estimator={run.grpo.estimator}, which has noise of its "
                f"own, found '{method.name}'; write method=standard, or grpo.estimator=method."
            )
        check_estimator(run.grpo, run.block_size)
        return
    if method.needs_p or method.adaptive:
        why = "are 0 in the first step of every round, so that there is no difference to fit"
        if method.signal not in (None, "loss"):
            why = "have no density fitted to their gradient"
        raise UserError(
            f"method '{method.name}': expected one without a density of t for objective.kind=grpo, whose log-ratios "
            f"{why}, found one; take lowdisc+fixedcount."
        )
    check_elbo(method)
    if run.grpo.budget % (views := views_of(method)):
        raise UserError(
            f"key 'grpo.budget': expected a multiple of the {views} views of '{method.name}', found {run.grpo.budget}."
        )


def check_estimator(grpo: GRPOSettings, block_size: int | None = None) -> None:
    """Refuse a published estimator with a budget that is not its multiple, or for a model that it has no meaning for.

    Args:
        block_size: of a model that is trained in blocks.

    Raises:
        UserError: such a budget, or masks of the prompt with a model in blocks.

    >>> from stabledllm.config.settings.policy import GRPOSettings
    >>> check_estimator(GRPOSettings(estimator="coupled", budget=4))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'grpo.budget': expected a multiple of 3 with grpo.estimator=coupled, found 4; ...
    """
    if rest := grpo.budget % (each := FORWARDS[grpo.estimator]):
        raise UserError(
            f"key 'grpo.budget': expected a multiple of {each} with grpo.estimator={grpo.estimator}, found "
            f"{grpo.budget}; write grpo.budget={grpo.budget + each - rest}."
        )
    if grpo.estimator == "one-step" and block_size:
        raise UserError(
            f"key 'grpo.estimator': expected a model that sees whole rows for 'one-step', which masks tokens of the "
            f"prompt, found one in blocks of {block_size} tokens; write method, espo, coupled or unigrpo."
        )


def check_policy_to_measure(settings: DecomposeSettings) -> None:
    """Refuse to measure the noise of policy gradients without what they need, or with methods that estimate no bound.

    Raises:
        UserError: such settings.

    >>> from stabledllm.config.settings import DecomposeSettings
    >>> check_policy_to_measure(DecomposeSettings(objective={"kind": "grpo"}, grpo={"beta": 0.1}))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'grpo.reference': expected the model that the divergence is from, ...
    """
    grpo = settings.grpo
    if settings.objective.kind != "grpo":
        if "grpo" in settings.model_fields_set:
            raise UserError(
                "key 'grpo': expected objective.kind=grpo beside it, found none; write objective.kind=grpo."
            )
        if settings.data.format == "prompts":
            raise UserError(_PROMPTS_ALONE)
        return
    if grpo.beta and grpo.reference in (None, "auto", "copy", "adapter"):
        found = f"'{grpo.reference}'" if grpo.reference else "none"
        raise UserError(
            f"key 'grpo.reference': expected the model that the divergence is from, beside grpo.beta above 0, found "
            f"{found}; write grpo.reference=MODEL."
        )
    if not grpo.beta and (grpo.reference is not None or grpo.kl != type(grpo).model_fields["kl"].default):
        key = "kl" if grpo.reference is None else "reference"
        raise UserError(f"key 'grpo.{key}': expected grpo.beta above 0 beside it, found none; leave it out.")
    if grpo.mean == "token" and grpo.ratio != "token":
        found = grpo.ratio or "none"
        raise UserError(f"key 'grpo.mean': expected grpo.ratio=token beside token, for all estimators, found {found}.")
    for name in settings.methods if "methods" in settings.model_fields_set else []:
        if name in PUBLISHED:  # which the checks of a method refuse
            continue
        method = OfParts(name)
        if method.needs_p or method.adaptive:
            raise UserError(
                f"method '{name}': expected one without a density of t for policy gradients, which have none to fit, "
                f"found one; leave it out."
            )
        check_elbo(method)
        if grpo.budget % (views := views_of(method)):
            raise UserError(
                f"key 'grpo.budget': expected a multiple of the {views} views of '{name}', found {grpo.budget}."
            )
