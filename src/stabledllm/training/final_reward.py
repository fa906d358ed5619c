"""What the responses of the end of a run of policy gradients were worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from stabledllm.stats.estimate import Estimate

LAST = 0.25
"""The share of a run's steps whose rewards are its final ones."""


def final_reward(log: Sequence[dict], steps: int) -> Estimate | None:
    """The mean reward of the responses in the last quarter of the steps; None where none is logged.

    A single step's mean is that of few prompts, which differ from step to step. The error is over the lines of the log.

    Args:
        log: lines with ``step`` and ``reward``, the mean since the line before. steps: of the whole run.

    >>> final_reward([{"step": step, "reward": step / 10} for step in (2, 4, 6, 8)], steps=8).value
    0.8
    """
    rewards = [line["reward"] for line in log if "reward" in line and line["step"] > (1 - LAST) * steps]
    rewards = rewards or [line["reward"] for line in log if "reward" in line][-1:]
    if not rewards:
        return None
    error = stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else math.nan
    return Estimate(value=fmean(rewards), stderr=error, n=len(rewards))
