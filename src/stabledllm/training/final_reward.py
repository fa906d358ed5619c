"""What the responses of the end of a run of policy gradients were worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from stabledllm.stats.estimate import Estimate

LAST = 0.25
"""The share of a run's steps whose rewards are its final ones."""


def final_reward(log: Sequence[dict], steps: int, inner: int = 1) -> Estimate | None:
    """The mean reward of the responses in the last quarter of the steps; None where none is logged.

    A single step's mean is that of few prompts, which differ from step to step. The error is over the lines of the log,
    of which those of one round count as one: they tell of the same responses.

    Args:
        log: lines with ``step`` and ``reward``, the mean since the line before. steps: of the whole run.
        inner: steps of a round.

    >>> final_reward([{"step": step, "reward": step / 10} for step in (2, 4, 6, 8)], steps=8).value
    0.8
    >>> final_reward([{"step": step, "reward": (step - 1) // 2} for step in range(1, 17)], steps=16, inner=2).n
    2
    """
    lines = [line for line in log if "reward" in line]
    lines = [line for line in lines if line["step"] > (1 - LAST) * steps] or lines[-1:]
    if not lines:
        return None
    rounds: dict[int, list[float]] = {}
    for line in lines:
        rounds.setdefault((line["step"] - 1) // inner, []).append(line["reward"])
    each = [fmean(rewards) for rewards in rounds.values()]
    error = stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Estimate(value=fmean(line["reward"] for line in lines), stderr=error, n=len(each))
