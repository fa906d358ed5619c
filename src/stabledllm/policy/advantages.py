"""Advantages of responses over the others that were drawn for the same prompt.

Source: GRPO (arXiv:2402.03300), with TRL's guard against groups that hardly differ.

Legend: P prompts, G responses of each (a group).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.errors import UserError, did_you_mean

SCALES = ("group", "none")
LEAST_SPREAD = 1e-4
"""Added to a group's standard deviation, as TRL does."""


def advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """Each reward minus its group's mean, divided by the group's standard deviation or not; float64, shape (P, G).

    A response without a reward (NaN) has advantage 0 and no part in its group's mean and deviation. So has every
    response of a group whose rewards are all equal.

    Args:
        rewards: shape (P, G). scale: ``group`` divides by the deviation (n - 1) plus 1e-4; ``none`` does not.

    Raises:
        UserError: another scale.

    >>> advantages(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, float("nan")]]), "none")
    tensor([[-0.6667,  0.3333,  0.3333],
            [ 0.0000,  0.0000,  0.0000]], dtype=torch.float64)
    """
    if scale not in SCALES:
        raise UserError(f"grpo.scale: expected group or none, found '{scale}'{did_you_mean(scale, SCALES)}.")
    centred = _centred(rewards)
    return centred / (_deviation(rewards)[:, None] + LEAST_SPREAD) if scale == "group" else centred


def group_deviations(rewards: Tensor) -> Tensor:
    """The standard deviation (n - 1) of each group's rewards, float64, shape (P,); 0 where one or none is known.

    >>> group_deviations(torch.tensor([[0.0, 2.0], [1.0, float("nan")]]))
    tensor([1.4142, 0.0000], dtype=torch.float64)
    """
    return _deviation(rewards)


def all_equal(rewards: Tensor) -> Tensor:
    """Whether all that is known of a group is one reward, so that it teaches nothing; bool, shape (P,).

    >>> all_equal(torch.tensor([[0.3, 0.3], [0.0, 1.0], [0.5, float("nan")]])).tolist()
    [True, False, True]
    """
    known, inf = ~rewards.isnan(), float("inf")
    return torch.where(known, rewards, -inf).amax(1) <= torch.where(known, rewards, inf).amin(1)


def _centred(rewards: Tensor) -> Tensor:
    known = ~rewards.isnan()
    values = torch.where(known, rewards.double(), 0.0)
    mean = values.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    # The mean of equal numbers is rounded, and must not make an advantage of its rounding.
    return torch.where(known & ~all_equal(rewards)[:, None], values - mean, 0.0)


def _deviation(rewards: Tensor) -> Tensor:
    known = (~rewards.isnan()).sum(1)
    return (_centred(rewards).square().sum(1) / (known - 1).clamp(min=1)).sqrt()
