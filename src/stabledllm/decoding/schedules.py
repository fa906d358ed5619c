"""How many of the masked tokens of each row a step decides.

Legend: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.decoding.options import DecodingOptions

_LAST = 1e-3
"""Dream's last timestep before 0."""


def per_step(block: int, steps: int) -> list[int]:
    """As even as can be, the larger ones first (LLaDA, arXiv:2502.09992)."""
    return [block // steps + (i < block % steps) for i in range(steps)]


def share_kept(steps: int, step: int) -> float:
    """s/t of Dream's schedule: t falls evenly from 1 to 1e-3; the last step decides what is left."""
    if step == steps - 1:
        return 0.0
    t, s = (1 - (1 - _LAST) * i / steps for i in (step, step + 1))
    return s / t


def counts(options: DecodingOptions, step: int, left: Tensor, uniforms: Tensor, masked: Tensor) -> Tensor:
    """How many tokens each row decides in this step of its block, int64, shape (B,).

    Args:
        step: 0-based, within the block. left: masked tokens of the block, shape (B,).
        uniforms: one for each position, shape (B, L); masked: bool, shape (B, L). Used by ``origin`` only.
    """
    steps = options.steps // options.blocks
    if options.schedule == "even":
        return left.clamp(max=per_step(options.block, steps)[step])
    kept = share_kept(steps, step)
    if options.schedule == "origin":
        return ((uniforms < 1 - kept) & masked).sum(1)
    return (left.double() * (1 - kept)).floor().long()


def nothing(options: DecodingOptions, step: int, left: Tensor) -> bool:
    """Whether the step certainly decides nothing, so that the model need not be called."""
    if not len(left) or not bool((left > 0).any()):
        return True
    if options.threshold is not None or options.schedule == "origin":
        return False
    none = torch.zeros(len(left), 1, device=left.device)
    return not bool((counts(options, step, left, none, none.bool()) > 0).any())
