"""The checks of a run on preferences or of policy gradients, by its settings and names; none loads torch."""

from __future__ import annotations

from functools import partial

from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.config.reward_names import check_reward_files, check_rewards
from stabledllm.config.settings import DataSettings, TrainSettings
from stabledllm.config.settings.policy import OF_THE_POLICY
from stabledllm.config.settings.preference import OF_THE_POLICY as OF_THE_POLICY_OR_KEPT
from stabledllm.errors import UserError
from stabledllm.experiment.check_list import WEIGHED, Checks
from stabledllm.experiment.readable import is_known, own_blocks_of
from stabledllm.images.kinds import are_images
from stabledllm.models.names import check_model_name
from stabledllm.noise.of_parts import OfParts
from stabledllm.policy_checks import check_policy
from stabledllm.preference_checks import check_fit_to_pairs, check_pair_density, check_preferences
from stabledllm.tasks.registry import TASKS

_QUESTIONS = "a task, whose questions have one answer"


def of_pairs(run: TrainSettings) -> Checks:
    """The checks of preferences: the keys, and the reference."""
    yield f"{WEIGHED} dpo data.format group_by_length lora", partial(check_preferences, run)
    yield from of_rows(run.objective.kind, run.data)
    if run.objective.kind == "dpo" and run.dpo.reference not in OF_THE_POLICY_OR_KEPT:
        yield "dpo.reference", partial(check_model_name, run.dpo.reference)


def of_rows(kind: str, data: DataSettings) -> Checks:
    """The check that data can hold pairs or questions, as far as their names tell; of the objective's kind."""
    if kind != "masked" and "train" in data.model_fields_set:  # where none is given another check says so
        yield "data.train", partial(_refuse_rows, kind, data.train)


def _refuse_rows(kind: str, spec: str) -> None:
    """Refuse data by a name that stands for rows of another kind: a task's for pairs, pictures or documents for both.

    Raises:
        UserError: such data.
    """
    found = _rows_by_name(spec)
    if kind == "dpo" and found:
        raise UserError(
            f"data.train: expected rows with 'chosen' and 'rejected' for objective.kind=dpo, found {found} ('{spec}'); "
            f"write data.train=PATH (docs/preferences.md)."
        )
    if kind == "grpo" and found and found != _QUESTIONS:
        raise UserError(
            f"data.train: expected questions in words for objective.kind=grpo, found {found} ('{spec}'); write a task, "
            f"or PATH of rows with 'prompt' or 'messages' (docs/rewards.md)."
        )


def _rows_by_name(spec: str) -> str:
    """What a name stands for, in words; empty where it names rows that only reading them tells."""
    name = spec.partition(":")[0]
    if are_images(spec):
        return "pictures"
    documents = {"text": "plain text", "ids": "token ids"}
    return documents.get(name) or (_QUESTIONS if name in TASKS else "")


def of_density(run: TrainSettings, name: str) -> Checks:
    """The check that training can have the density that a method draws t from."""
    if is_known(name):
        yield (
            "method methods p_of_t objective dpo model block_size",
            partial(check_pair_density, own_blocks_of(run), OfParts(name)),
        )


def of_fit_to_pairs(run: TrainSettings) -> Checks:
    """The checks of a fit of p(t) to preferences."""
    yield from of_pairs(run)
    if is_known(run.method):
        yield (
            "dpo objective model block_size method",
            partial(check_fit_to_pairs, own_blocks_of(run), OfParts(run.method)),
        )


def of_policy(run: TrainSettings) -> Checks:
    """The checks of policy gradients: the keys, the rewards, the reference and how responses are drawn."""
    yield f"{WEIGHED} grpo data.format group_by_length lora", partial(check_policy, run)
    if run.objective.kind != "grpo":
        return
    yield "grpo.reward grpo.reward_weights", partial(check_rewards, run.grpo)
    yield "grpo.reward", partial(check_reward_files, run.grpo)
    if run.grpo.beta and run.grpo.reference not in OF_THE_POLICY:
        yield "grpo.reference", partial(check_model_name, run.grpo.reference)
    yield "grpo.rollout block_size", partial(_check_rollout, run)


def _check_rollout(run: TrainSettings) -> None:
    if run.block_size and run.grpo.rollout.block != run.block_size:
        raise UserError(
            f"key 'grpo.rollout.block': expected block_size = {run.block_size}, found {run.grpo.rollout.block}; leave "
            f"it out, or write grpo.rollout.block={run.block_size}."
        )
    how = run.grpo.rollout
    try:
        refuse_unfit(how.length, how.steps, how.block, run.block_size, how.sub_block)
    except UserError as error:
        raise UserError(f"key 'grpo.rollout': {error}") from None
