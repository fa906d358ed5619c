"""The reward ``task``: the scorer of the rows' own task."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.config.reward_names import TASK
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.errors import UserError
from stabledllm.rewards.reward import Logged, Responses
from stabledllm.tasks.registry import TASKS


class TaskReward:
    """1 for a right answer, else 0; of tasks with partial credit (reasoning-gym) that; None without a right answer.

    An answer is right where ``eval`` counts it as right.
    """

    name = TASK
    digest = None

    def check(self, prompts: Sequence[RolloutPrompt]) -> str | None:
        """Refuse prompts of which none has an answer; say how many have none."""
        without = [prompt for prompt in prompts if prompt.task is None]
        if len(without) == len(prompts):
            raise UserError(
                f"key 'grpo.reward': expected rows with an answer that {TASK} can compare with, such as 'answer': 72, "
                f"found none ({prompts[0].origin}, ...); add one, or write grpo.reward=[FILE.py:FUNCTION]."
            )
        if without:
            return f"reward {TASK}: {len(without)} of {len(prompts)} prompts have no answer ({without[0].origin}, ...)"
        return None

    def score(self, responses: Responses, logged: Logged) -> list[float | None]:
        """The reward of each response."""
        return [_worth(prompt, text) for prompt, text in zip(responses.prompts, responses.texts, strict=True)]


def _worth(prompt: RolloutPrompt, text: str) -> float | None:
    if prompt.task is None:
        return None
    scored = TASKS[prompt.task].score(text, prompt.gold)
    return scored.credit if scored.credit is not None else float(scored.correct is True)
