"""Attention that grows from causal to full over the first steps of training (DiffuLLaMA, arXiv:2410.17891).

Legend: N rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.streams import Key, Stream


@dataclass(frozen=True)
class Annealing:
    """One optimizer step's attention: a token sees itself, all before it, and each later one with probability ``rate``.

    One draw serves the whole step, every row and layer, as published. It is a function of the key and of the two
    positions alone: padding, packing, micro-batches and ranks change nothing in it, and a resumed run repeats it.

    Args:
        key: the run's noise seed and the optimizer step. rate: in (0, 1), see :func:`rate_at`.
    """

    key: Key
    rate: float

    def allowed(self, position_ids: Tensor) -> Tensor:
        """True where the query at a position may see the key at another, bool, shape (N, L, L).

        Args:
            position_ids: the positions in each row or segment, (N, L).
        """
        size = int(position_ids.max()) + 1
        index = torch.arange(size, device=position_ids.device)
        drawn = self.key.token_uniforms(Stream.ATTENTION, index, index) < self.rate
        drawn |= index[:, None] >= index[None, :]
        return drawn[position_ids[:, :, None], position_ids[:, None, :]]


def rate_at(step: int, steps: int) -> float:
    """The share of later tokens that are seen in an optimizer step, counted from 0: ``min(1, (step + 1) / steps)``.

    >>> [rate_at(step, 4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / steps)
