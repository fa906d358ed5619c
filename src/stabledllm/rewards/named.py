"""The rewards that a run's settings name, or that are given in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stabledllm.config.reward_names import TASK, check_rewards, check_weights, file_and_function
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.errors import UserError
from stabledllm.rewards.functions import function_in, given_function
from stabledllm.rewards.reward import Function, Reward, Rewards
from stabledllm.rewards.task import TaskReward


def build_rewards(grpo: GRPOSettings, given: Sequence[str | Function] = ()) -> Rewards:
    """The rewards of a run; files are imported.

    Args:
        given: rewards given in Python, functions or names, in place of ``grpo.reward``.

    Raises:
        UserError: an unknown name, a file that does not import, no such function, two rewards of one name, or weights
            that are not one for each.
    """
    if given:
        check_weights(grpo.reward_weights, len(given))
    else:
        check_rewards(grpo)
    rewards = [_reward(one) for one in given or grpo.reward]
    names = [reward.name for reward in rewards]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"rewards: expected each name once, found '{twice}' twice; give one of the functions another.")
    return Rewards(rewards, grpo.reward_weights)


def _reward(one: str | Callable) -> Reward:
    if not isinstance(one, str):
        return given_function(one)
    if one == TASK:
        return TaskReward()
    named = file_and_function(one)
    if named is None:
        raise UserError(f"rewards: expected {TASK}, FILE.py:FUNCTION or a function, found '{one}'.")
    return function_in(*named)
