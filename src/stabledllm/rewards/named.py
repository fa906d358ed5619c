"""The rewards that a run's settings name, or that are given in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from stabledllm.config.reward_names import TASK, check_rewards, check_weights, file_and_function
from stabledllm.config.settings import TrainSettings
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.errors import UserError
from stabledllm.rewards.functions import function_in, given_function
from stabledllm.rewards.reward import Function, Reward, Rewards
from stabledllm.rewards.task import TaskReward


def rewards_of(run: TrainSettings, given: Sequence[str | Function] = ()) -> Rewards | None:
    """The rewards of a run; None where it is none of policy gradients.

    Raises:
        UserError: as :func:`build_rewards`, or rewards that are given to another run.
    """
    if run.objective.kind == "grpo":
        return build_rewards(run.grpo, given)
    if given:
        raise UserError("rewards: expected objective.kind=grpo beside them, found none; write objective.kind=grpo.")
    return None


def build_rewards(grpo: GRPOSettings, given: str | Function | Sequence[str | Function] = ()) -> Rewards:
    """The rewards of a run; each of their files is imported once.

    Args:
        given: rewards given in Python, functions or names or one of them, in place of ``grpo.reward``.

    Raises:
        UserError: an unknown name, a file that does not import, no such function, two rewards of one name, or weights
            that are not one for each.
    """
    if isinstance(given, str) or callable(given):
        given = [given]
    if given:
        check_weights(grpo.reward_weights, len(given))
    else:
        check_rewards(grpo)
    modules: dict[Path, ModuleType] = {}
    rewards = [_reward(one, modules) for one in given or grpo.reward]
    names = [reward.name for reward in rewards]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"rewards: expected each name once, found '{twice}' twice; give one of the functions another.")
    return Rewards(rewards, grpo.reward_weights)


def _reward(one: str | Callable, modules: dict[Path, ModuleType]) -> Reward:
    if not isinstance(one, str):
        return given_function(one)
    if one == TASK:
        return TaskReward()
    named = file_and_function(one)
    if named is None:
        raise UserError(f"rewards: expected {TASK}, FILE.py:FUNCTION or a function, found '{one}'.")
    return function_in(*named, modules)
