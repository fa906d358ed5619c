"""Checks that the keys of a run on preferences go together; each refusal is one sentence. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.config.settings.policy import PUBLISHED
from stabledllm.config.settings.preference import OF_THE_POLICY
from stabledllm.errors import UserError
from stabledllm.method_checks import check_elbo, standing_still
from stabledllm.noise.of_parts import OfParts
from stabledllm.response_checks import check_responses

if TYPE_CHECKING:
    from stabledllm.config.settings import DecomposeSettings, TrainSettings


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
        if pairs and run.objective.kind == "grpo":
            if path := run.data.train.partition("preference:")[2]:
                raise UserError(
                    f"data.train: expected questions for objective.kind=grpo, found '{run.data.train}', rows of "
                    f"preferences; write data.train={path}, whose prompts are answered."
                )
        elif pairs:
            raise UserError(
                "data.format: expected objective.kind=dpo for rows of preferences, found a run on single answers; to "
                'train on the chosen ones alone write data.format=prompt-completion "data.columns={prompt: prompt, '
                'completion: chosen}".'
            )
        if "dpo" in run.model_fields_set and run.dpo.model_fields_set:
            raise UserError("key 'dpo': expected objective.kind=dpo beside it, found none; write objective.kind=dpo.")
        return
    check_responses(run, form="preference", hold="pairs", beside="reference", does="compares bounds on")
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
    if "methods" in settings.model_fields_set:
        for name in settings.methods:
            if name in PUBLISHED:  # which the checks of a method refuse
                continue
            method = OfParts(name)
            check_elbo(method)
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
    check_elbo(OfParts(standing_still(method)))
    draws = _draws(method, run.dpo.budget)
    if run.dpo.correction == "jackknife" and draws < 2 + 2 * any(method.has(s) for s in ("lowdisc", "strats")):
        raise UserError(
            f"key 'dpo.budget': expected more forwards for correction=jackknife, which compares at least two "
            f"replicates of '{method.name}', found {run.dpo.budget}; write dpo.budget={4 * views_of(method)}."
        )


def check_pair_density(run: TrainSettings, method: OfParts) -> None:
    """Refuse training on preferences whose density of t cannot be had: it is of pairs, and of two models that differ.

    Raises:
        UserError: ``ppots`` without a fitted density, a density in blocks, or one that follows training beside values
            of the reference that were computed before it.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_pair_density(TrainSettings(objective={"kind": "dpo"}), OfParts("ppots"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'p_of_t': expected a density fitted to pairs for method 'ppots', found none: ...
    """
    if run.objective.kind != "dpo" or not (method.needs_p or method.adaptive):
        return
    _refuse_blocks(run, method)
    if method.needs_p and run.p_of_t is None:
        follows = "+".join("adaptive" if part.startswith("ppots") else part for part in method.name.split("+"))
        raise UserError(
            f"key 'p_of_t': expected a density fitted to pairs for method '{method.name}', found none: before the "
            f"first step policy and reference are alike, and nothing is there to fit; write p_of_t=FILE of 'stabledllm "
            f"fit objective.kind=dpo', or method={follows}."
        )
    if method.adaptive and run.dpo.reference == "kept":
        raise UserError(
            f"key 'dpo.reference': expected copy or adapter for method '{method.name}', whose draws follow training, "
            f"found kept, whose values are computed before it; leave it out."
        )


def check_fit_to_pairs(run: TrainSettings, method: OfParts) -> None:
    """Refuse to fit a density to preferences without a reference that differs from the policy, or in blocks.

    Raises:
        UserError: such settings.

    >>> from stabledllm.config.settings import TrainSettings
    >>> check_fit_to_pairs(TrainSettings(objective={"kind": "dpo"}), OfParts("ppots"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'dpo.reference': expected the model that 'tiny' is held against, found auto; ...
    """
    if run.objective.kind != "dpo":
        return
    _refuse_blocks(run, method)
    if run.dpo.reference in OF_THE_POLICY:
        raise UserError(
            f"key 'dpo.reference': expected the model that '{run.model}' is held against, found {run.dpo.reference}; "
            f"write dpo.reference=MODEL, such as the run that it was trained from."
        )


def _refuse_blocks(run: TrainSettings, method: OfParts) -> None:
    if run.block_size:
        raise UserError(
            f"method '{method.name}': expected no density of t for pairs in blocks, of which each draws its own t, "
            f"found block_size={run.block_size}; take lowdisc+fixedcount."
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
