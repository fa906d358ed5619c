"""What responses are worth: rewards, each with a weight, added up.

A reward is one of ours or a function in TRL's signature, ``f(prompts=, completions=, completion_ids=, **columns)``,
which gives a number for each response, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

from stabledllm.data.rollout_prompts import RolloutPrompt


@dataclass(frozen=True)
class Responses:
    """Responses with the prompt of each; the prompt stands once for every response to it.

    ``texts`` and ``ids`` are the same, as text and as tokens. ``trainer_state``: that of the Trainer, if there is one.
    """

    prompts: Sequence[RolloutPrompt]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    trainer_state: Any = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class Logged:
    """What functions of the user's log beside their rewards, as TRL lets them.

    ``metrics``: finite numbers by their names. ``columns``: a value for each response, by their names.
    """

    metrics: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)


class Reward(Protocol):
    """What responses are worth by one measure."""

    name: str
    digest: str | None
    """A digest of its source; None where it is ours."""

    def check(self, prompts: Sequence[RolloutPrompt]) -> str | None:
        """Refuse prompts that it can make nothing of; a sentence where it applies to some of them alone.

        Raises:
            UserError: it lacks what it needs of all of them.
        """
        ...

    def score(self, responses: Responses, logged: Logged) -> list[float | None]:
        """The reward of each response; None where it does not apply.

        Raises:
            UserError: it gives no such list, or fails.
        """
        ...


@dataclass(frozen=True)
class Scores:
    """The rewards of some responses: in total, and by each reward's name, without its weight.

    ``metrics`` and ``columns``: see :class:`Logged`; metrics are means.
    """

    total: list[float | None]
    """None where no reward applies."""
    by_name: dict[str, list[float | None]]
    metrics: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)


class Rewards:
    """Rewards with their weights.

    >>> from stabledllm.rewards.task import TaskReward
    >>> prompt = RolloutPrompt([1], [{"role": "user", "content": "1+1=?"}], "row 1", task="gsm8k", gold="#### 2")
    >>> Rewards([TaskReward()], [2.0]).score([prompt] * 2, ["#### 2", "#### 3"], [[5], [6]]).total
    [2.0, 0.0]
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None):
        self.rewards = list(rewards)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.rewards)

    @property
    def names(self) -> list[str]:
        """The name of each reward."""
        return [reward.name for reward in self.rewards]

    @property
    def digests(self) -> dict[str, str]:
        """The digest of the source of each reward that is a function of the user's, by its name."""
        return {reward.name: reward.digest for reward in self.rewards if reward.digest is not None}

    def check(self, prompts: Sequence[RolloutPrompt]) -> list[str]:
        """Refuse, before anything is drawn, prompts to which a reward never applies.

        Returns:
            a sentence on each reward that applies to some of them alone.

        Raises:
            UserError: such prompts, or columns that they lack.
        """
        return [said for reward in self.rewards if (said := reward.check(prompts))]

    def score(
        self,
        prompts: Sequence[RolloutPrompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
    ) -> Scores:
        """The rewards of responses.

        Args:
            prompts: one for each response, so that the responses of a group have the same.

        Raises:
            UserError: a function of the user's fails or gives something else than a finite number or None for each.
        """
        responses, logged = Responses(prompts, completions, completion_ids, trainer_state), Logged()
        by_name = {reward.name: reward.score(responses, logged) for reward in self.rewards}
        total = [_sum(values, self.weights) for values in zip(*by_name.values(), strict=True)]
        metrics = {name: fmean(values) for name, values in logged.metrics.items()}
        return Scores(total, by_name, metrics, logged.columns)


def _sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    there = [weight * value for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(there) if there else None


Function = Callable[..., Sequence[float | None]]
"""A function in TRL's signature."""
