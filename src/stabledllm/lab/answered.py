"""Prompts that a model answers to learn from, as in a run: responses, their rewards and advantages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stabledllm.build import build_decoding
from stabledllm.config.settings import DecomposeSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.decoding import refuse_unsuited
from stabledllm.errors import UserError
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.rollouts import Rollouts
from stabledllm.models.loading import LoadedModel
from stabledllm.policy.advantages import advantages, all_equal
from stabledllm.policy.noise import Group
from stabledllm.rewards.reward import Rewards
from stabledllm.runtime.showing import bar


@dataclass(frozen=True)
class Answered:
    """Groups of responses with unequal rewards.

    ``tried``: prompts that were answered. ``equal``: those of them that teach nothing, as all rewards were equal.
    ``mean_reward``: over all responses that have a reward, NaN where none has.
    """

    groups: list[Group]
    tried: int
    equal: int
    mean_reward: float


def answered_groups(
    loaded: LoadedModel,
    prompts: Sequence[RolloutPrompt],
    rewards: Rewards,
    settings: DecomposeSettings,
    say: Callable[[str], None],
) -> Answered:
    """Let a model answer prompts until ``grpo.prompts`` of them have responses with unequal rewards.

    Args:
        loaded: the model that answers. prompts: in the order in which they are tried.

    Raises:
        UserError: a reward that fails or never applies, decoding that does not fit the model, or fewer than 2 prompts
            with unequal rewards.
    """
    grpo, n = settings.grpo, settings.grpo.prompts
    for note in rewards.check(prompts):
        say(note)
    own = getattr(loaded.model.config, "block_size", None)
    options = build_decoding(grpo.rollout.in_blocks_of(own))
    options = replace(options, seed=(settings.seed + options.seed) % (1 << 63))
    refuse_unsuited(loaded.model, options)
    rollouts = Rollouts(loaded, options, grpo.group, fill=grpo.filled_to(settings.data.pad_response_to, own))
    groups, totals, tried = [], [], 0
    most = min(len(prompts), n * grpo.tries)
    with bar(most, "responses", "prompt") as shown:
        while len(groups) < n and tried < most:
            some = prompts[tried : min(tried + n, most)]
            found, rewarded = _answer(rollouts, some, tried * grpo.group, rewards, grpo.scale)
            groups, tried = groups + found, tried + len(some)
            totals.append(rewarded)
            shown.update(len(some))
    rewarded = torch.cat(totals)
    equal = int(all_equal(rewarded).sum())
    say(f"answered {tried} prompts, {grpo.group} responses each; {equal} teach nothing, as all their rewards are equal")
    if len(groups) < 2:
        mean = float(rewarded.nanmean())
        raise UserError(
            f"data '{settings.data.train}': expected at least 2 prompts whose responses have unequal rewards, found "
            f"{len(groups)} of {tried}, with a mean reward of {mean:.3g}; take other rows, a larger grpo.group or a "
            f"higher grpo.rollout.temperature."
        )
    return Answered(groups[:n], tried, equal, float(rewarded.nanmean()))


def _answer(
    rollouts: Rollouts, prompts: Sequence[RolloutPrompt], first: int, rewards: Rewards, scale: str
) -> tuple[list[Group], torch.Tensor]:
    """The groups of some prompts without those of equal rewards, and all rewards, shape (P, G), NaN for none."""
    each = [prompt for prompt in prompts for _ in range(rollouts.group)]
    with tempfile.TemporaryDirectory() as folder:  # nothing is resumed
        journal = Journal(Path(folder), "rollouts", {})
        responses, _ = rollouts.draw(rollouts.loaded.model, prompts, first, journal)
    texts = [rollouts.text(response) for response in responses]
    totals = rewards.score(each, texts, [list(response.ids) for response in responses]).total
    rewarded = torch.tensor([torch.nan if t is None else t for t in totals], dtype=torch.float64).view(len(prompts), -1)
    found, equal = advantages(rewarded, scale), all_equal(rewarded)
    rows, size = rollouts.rows(each, responses), rollouts.group
    groups = [Group(rows[i * size : (i + 1) * size], found[i]) for i in range(len(prompts)) if not bool(equal[i])]
    return groups, rewarded
