"""The number of masked tokens that each step decides in each row.

Legend: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.decoding.options import DecodingOptions

_LAST = 1e-3
"""Dream's last timestep before 0."""


def per_step(block: int, steps: int) -> list[int]:
    """The number of tokens per step, as even as possible, larger ones first (LLaDA, arXiv:2502.09992)."""
    return [block // steps + (i < block % steps) for i in range(steps)]


def share_still_masked(steps: int, step: int) -> float:
    """The share s/t that stays masked in Dream's schedule: t falls evenly from 1 to 1e-3; 0 in the last step."""
    if step == steps - 1:
        return 0.0
    t, s = (1 - (1 - _LAST) * i / steps for i in (step, step + 1))
    return s / t


def counts(options: DecodingOptions, step: int, left: Tensor, uniforms: Tensor, masked: Tensor) -> Tensor:
    """The number of tokens that each row decides in this step, int64, shape (B,).

    Args:
        step: index of the step within the part (block or sub-block), from 0. left: its masked tokens, shape (B,).
        uniforms: one for each position, shape (B, L). masked: bool, shape (B, L). Both are used by ``origin`` only.
    """
    steps = options.part_steps
    if options.schedule == "even":
        return left.clamp(max=per_step(options.part, steps)[step])
    still_masked = share_still_masked(steps, step)
    if options.schedule == "origin":
        return ((uniforms < 1 - still_masked) & masked).sum(1)
    return (left.double() * (1 - still_masked)).floor().long()


def decides_nothing(options: DecodingOptions, step: int, left: Tensor) -> bool:
    """Whether the step certainly decides nothing, so that the model need not be called."""
    if not len(left) or not bool((left > 0).any()):
        return True
    if options.parallel or options.schedule == "origin":
        return False
    none = torch.zeros(len(left), 1, device=left.device)
    return not bool((counts(options, step, left, none, none.bool()) > 0).any())
