"""Checks that the keys of a run on preferences go together; each refusal is one sentence. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.errors import UserError
from stabledllm.method_checks import check_elbo
from stabledllm.noise.of_parts import OfParts

if TYPE_CHECKING:
    from stabledllm.config.settings import DecomposeSettings, TrainSettings

_MEANINGLESS = ("group_by_length", "views_per_forward", "block_schedule")


def check_preferences(run: TrainSettings) -> None:
    """Refuse rows without a rejected answer for a loss of pairs, the reverse, and keys that mean nothing to pairs.

    Raises:
        UserError: such keys.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_preferences(TrainSettings(objective={"kind": "dpo"}, group_by_length=True))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'group_by_length': expected false beside objective.kind=dpo, ...
    """
    pairs = run.data.format == "preference" or run.data.train.startswith("preference:")
    if run.objective.kind != "dpo":
        if pairs:
            raise UserError(
                "data.format: expected objective.kind=dpo for rows of preferences, found a run on single answers; to "
                'train on the chosen ones alone write data.format=prompt-completion "data.columns={prompt: prompt, '
                'completion: chosen}".'
            )
        if "dpo" in run.model_fields_set and run.dpo.model_fields_set:
            raise UserError("key 'dpo': expected objective.kind=dpo beside it, found none; write objective.kind=dpo.")
        return
    if run.data.format != "preference":
        raise UserError(
            f"data.format: expected preference for objective.kind=dpo, found '{run.data.format}'; leave it out."
        )
    for key in _MEANINGLESS:
        if value := getattr(run, key):
            off = "false" if value is True else "null"
            raise UserError(
                f"key '{key}': expected {off} beside objective.kind=dpo, whose forwards hold pairs, found it given; "
                f"leave it out."
            )
    if run.data.streaming:
        raise UserError("data.streaming: expected false beside objective.kind=dpo, found true; leave it out.")
    if run.router.bias_rate or run.router.loss:
        raise UserError("key 'router': expected none beside objective.kind=dpo, found it given; leave it out.")
    if run.objective.keys != type(run.objective)(eps=run.objective.eps).keys:
        raise UserError(
            "key 'objective': expected nothing but kind and eps for objective.kind=dpo, which compares bounds on the "
            "log-likelihood, found another weighting or mean; leave them out."
        )
    if run.lora and run.lora.dropout:
        raise UserError(
            f"key 'lora.dropout': expected 0 beside objective.kind=dpo, since its noise would not be that of the "
            f"reference, found {run.lora.dropout:g}."
        )
    if run.dpo.reference == "adapter" and not run.lora:
        raise UserError("key 'dpo.reference': expected 'lora' beside adapter, found a run that trains all weights.")


def check_pairs_to_measure(settings: DecomposeSettings) -> None:
    """Refuse to measure the noise of preferences without a reference, or with methods that cannot estimate bounds.

    Raises:
        UserError: such settings.

    >>> from stabledllm.config.settings import DecomposeSettings
    >>> check_pairs_to_measure(DecomposeSettings(objective={"kind": "dpo"}))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'dpo.reference': expected the model that 'tiny' is held against, found none; ...
    """
    if settings.objective.kind != "dpo":
        if "dpo" in settings.model_fields_set:
            raise UserError("key 'dpo': expected objective.kind=dpo beside it, found none; write objective.kind=dpo.")
        if settings.data.format == "preference":
            raise UserError("data.format: expected objective.kind=dpo for rows of preferences, found none.")
        return
    if settings.dpo.reference is None:
        raise UserError(
            f"key 'dpo.reference': expected the model that '{settings.model}' is held against, found none; write "
            f"dpo.reference=MODEL, such as the run that it was trained from."
        )
    if settings.gradient and "gradient" in settings.model_fields_set:
        raise UserError(
            "key 'gradient': expected nothing beside objective.kind=dpo, which measures it anyway; leave it out."
        )
    if "methods" in settings.model_fields_set:
        for name in settings.methods:
            method = OfParts(name)
            check_elbo(method)
            if method.needs_p:
                raise UserError(f"method '{name}': expected one without a fitted density for preferences, found ppots.")
            _draws(method, settings.dpo.budget)


def check_pair_method(run: TrainSettings, method: OfParts) -> None:
    """Refuse a method that cannot estimate the bounds of pairs, or whose views do not divide the budget.

    Raises:
        UserError: such a method.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_pair_method(TrainSettings(objective={"kind": "dpo"}, dpo={"budget": 3}), OfParts("mirror"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'dpo.budget': expected a multiple of the 2 views of 'mirror', found 3.
    """
    if run.objective.kind != "dpo":
        return
    check_elbo(method)
    draws = _draws(method, run.dpo.budget)
    if run.dpo.correction == "jackknife" and draws < 2 + 2 * any(method.has(s) for s in ("lowdisc", "strats")):
        raise UserError(
            f"key 'dpo.budget': expected more forwards for correction=jackknife, which compares at least two "
            f"replicates of '{method.name}', found {run.dpo.budget}; write dpo.budget={4 * views_of(method)}."
        )


def views_of(method: OfParts) -> int:
    """The most forwards of a draw.

    >>> views_of(OfParts("multisample4")), views_of(OfParts("standard"))
    (4, 1)
    """
    return max((part.views for part in method.parts), default=1)


def _draws(method: OfParts, budget: int) -> int:
    """The number of mask ratios that a budget of forwards is; refused where the views do not divide it."""
    if budget % (views := views_of(method)):
        raise UserError(
            f"key 'dpo.budget': expected a multiple of the {views} views of '{method.name}', found {budget}."
        )
    return budget // views
