"""The gradient of a rebuilt step, and what each part of its loss has in it.

The share of a part with gradient g_i in the step's gradient g is <g_i, g> / |g|^2: the shares of all parts of a sum add
to 1, and a part that pulls against the others has a negative one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class StepGradient:
    """The gradient that lies in the parameters' ``.grad``, which is taken from there and kept.

    Args:
        norm: its norm before it was clipped in place.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> (weight * torch.tensor([3.0, 4.0])).sum().backward()
    >>> step = StepGradient([weight], norm=5.0)
    >>> step.share(3 * weight[0])
    (0.36, 3.0)
    >>> step.without([4 * weight[1]])
    3.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], norm: float):
        self.norm = norm
        self.held = [(p, p.grad) for p in parameters if p.requires_grad and p.grad is not None]
        clipped = math.sqrt(sum(_dot(grad, grad) for _, grad in self.held))
        self.scale = norm / clipped if clipped else 0.0
        self._clear()

    def share(self, loss: Tensor, *, again: bool = False) -> tuple[float, float]:
        """The share of a part of the loss, and the norm of its gradient.

        Args:
            again: keep the graph, for another part of the same forward pass.
        """
        if not self._take(loss, again):
            return 0.0, 0.0
        product = sum(_dot(p.grad, grad) for p, grad in self.held if p.grad is not None) * self.scale
        norm = math.sqrt(sum(_dot(p.grad, p.grad) for p, _ in self.held if p.grad is not None))
        self._clear()
        return (product / self.norm**2 if self.norm else 0.0), norm

    def without(self, losses: Iterable[Tensor]) -> float:
        """The norm that the step's gradient would have without some parts of the loss."""
        for loss in losses:
            self._take(loss, False)
        squares = 0.0
        for p, grad in self.held:
            rest = grad.float() * self.scale - (0.0 if p.grad is None else p.grad.float())
            squares += _dot(rest, rest)
        self._clear()
        return math.sqrt(squares)

    def _take(self, loss: Tensor, again: bool) -> bool:
        if not loss.requires_grad:  # nothing was masked
            return False
        loss.backward(retain_graph=again)
        return True

    def _clear(self) -> None:
        for p, _ in self.held:
            p.grad = None


def _dot(a: Tensor, b: Tensor) -> float:
    wide = torch.promote_types(a.dtype, torch.float32)
    return float(torch.dot(a.detach().flatten().to(wide), b.detach().flatten().to(wide)))
