"""The clipped loss at the mean of noisy log-ratios, which its own mean differs from by what noise makes of its bends.

Legend: G responses, R replicates, T tokens of the longest response, N ratios of a group: G, or G x T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.policy.loss import GRPOLoss


@dataclass(frozen=True)
class Ratios:
    """The numbers whose exponential the loss takes, in one repeat: float64 on the CPU, shape (N,)."""

    current: Tensor
    old: Tensor
    reference: Tensor | None
    weight: Tensor
    """Of each in the group's loss; 0 for what is not scored."""
    response: Tensor
    """The number of the response that each belongs to."""


def ratios_of(
    loss: GRPOLoss, current: Tensor, old: Tensor, reference: Tensor | None, tokens: Tensor, scored: Tensor | None
) -> Ratios:
    """What a loss compares, on the scale of its ratio; the arguments are those of :class:`GRPOLoss`.

    >>> tokens = torch.tensor([2])
    >>> values = torch.tensor([[4.0, 8.0]])  # two replicates
    >>> ratios_of(GRPOLoss("mean"), values, values, None, tokens, None).current
    tensor([3.], dtype=torch.float64)
    """
    scored = None if scored is None else scored.double().cpu()
    count = len(current)
    if loss.ratio == "token":
        share = 1 / (scored.sum().clamp(min=1) if loss.mean == "token" else count * scored.sum(1, True).clamp(min=1))
        weight, each = (scored * share).flatten(), torch.arange(count).repeat_interleave(scored.shape[1])
    else:
        weight, each = torch.full((count,), 1 / count, dtype=torch.float64), torch.arange(count)

    def scaled(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        values = values.double().cpu()
        if loss.ratio == "token":
            return values.flatten()
        whole = values.mean(1) if scored is None else (values * scored).sum(1)
        divisor = tokens.cpu() if scored is None else scored.sum(1)
        return whole / divisor.clamp(min=1) if loss.ratio == "mean" else whole

    return Ratios(scaled(current), scaled(old), scaled(reference), weight, each)


def loss_at_mean(loss: GRPOLoss, repeats: Sequence[Ratios], advantages: Tensor) -> float:
    """The group's loss at the mean over repeats of everything that its exponentials are taken of.

    Where the repeats score different tokens, a mean is weighted as the loss weights them: so a loss without any bend
    has its own mean there.

    >>> loss, one = GRPOLoss("sequence"), torch.ones(1)
    >>> same = [ratios_of(loss, x, x, None, one, None) for x in torch.tensor([[[1.0]], [[3.0]]])]
    >>> loss_at_mean(loss, same, torch.tensor([2.0]))
    -2.0
    """
    total = sum(r.weight for r in repeats)
    weight = total / len(repeats)

    def mean(values: Sequence[Tensor | None]) -> Tensor | None:
        if values[0] is None:
            return None
        summed = sum(r.weight * v for r, v in zip(repeats, values, strict=True))
        return torch.where(total > 0, summed / total.clamp(min=1e-300), 0.0)[:, None]

    current, old, reference = (mean([getattr(r, name) for r in repeats]) for name in ("current", "old", "reference"))
    each = replace(loss, ratio="sequence", mean="response")
    found = each(current, old, reference, advantages.double().cpu()[repeats[0].response], torch.ones_like(weight))
    return float((weight * found.value).sum())
