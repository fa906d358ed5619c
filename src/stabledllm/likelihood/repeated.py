"""The noise of a step's part that is drawn again and again while its data stay fixed: of numbers and of a gradient.

Legend: n repeats, D coordinates of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

OTHER_SEED = 1 << 32
"""Added to the seed for a model with draws of its own."""


@dataclass
class Repeats:
    """What is kept of the repeats of one item: its numbers, and of its gradients the sum and the sum of squares.

    >>> seen = Repeats()
    >>> seen.add(torch.tensor([1.0, 0.0]), loss=2.0)
    >>> seen.add(torch.tensor([0.0, 1.0]), loss=4.0)
    >>> seen.variance("loss"), seen.gradient_variance, seen.signal
    (2.0, 1.0, 0.0)
    """

    numbers: dict[str, list[float]] = field(default_factory=dict)
    total: Tensor | float = 0.0
    """Sum of the gradients, shape (D,)."""
    squares: float = 0.0
    count: int = 0

    def add(self, gradient: Tensor, **numbers: float) -> None:
        """Add one repeat."""
        for name, value in numbers.items():
            self.numbers.setdefault(name, []).append(float(value))
        self.total = self.total + gradient
        self.squares += float(gradient @ gradient)
        self.count += 1

    def of(self, name: str) -> Tensor:
        """A number's repeats, shape (n,), float64."""
        return torch.tensor(self.numbers[name], dtype=torch.float64)

    def variance(self, name: str) -> float:
        """The unbiased variance of a number."""
        return float(self.of(name).var())

    @property
    def gradient_variance(self) -> float:
        """The unbiased variance of the gradient, summed over its coordinates."""
        return (self.squares - float(self.total @ self.total) / self.count) / (self.count - 1)

    @property
    def signal(self) -> float:
        """The squared norm of the mean gradient, without what noise adds to it; an estimate of it may be below 0."""
        return (float(self.total @ self.total) - self.squares) / (self.count * (self.count - 1))


@dataclass
class BetweenItems:
    """How far the mean gradients of items lie apart: the noise that no draws of an item lower.

    >>> between = BetweenItems()
    >>> for mean in (1.0, 3.0):
    ...     item = Repeats()
    ...     item.add(torch.tensor([mean])), item.add(torch.tensor([mean]))  # no noise
    ...     between.add(item)
    (None, None)
    (None, None)
    >>> between.variance
    2.0
    """

    total: Tensor | float = 0.0
    signals: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, item: Repeats) -> None:
        """Add an item whose repeats are complete."""
        self.total = self.total + item.total / item.count
        self.signals += item.signal
        self.noise += item.gradient_variance / item.count
        self.count += 1

    @property
    def variance(self) -> float:
        """The unbiased variance of the mean gradient over items, summed over its coordinates; NaN for one item."""
        if self.count < 2:
            return math.nan
        of_sum = float(self.total @ self.total) - self.noise
        return (self.signals - of_sum / self.count) / (self.count - 1)


def gradient_of(parts: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of the gradients of scalars, one backward pass for each, shape (D,), float64.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> gradient_of((weight.sum() * k for k in (1, 2)), [weight])
    tensor([3., 3.], dtype=torch.float64)
    """
    device = parameters[0].device
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=device)
    for part in parts:
        slopes = torch.autograd.grad(part, parameters, allow_unused=True, materialize_grads=True)
        total += torch.cat([slope.flatten().to(device, torch.float64) for slope in slopes])
    return total


def excess(repeats: int, mean_of_values: float, value_at_mean: Callable[[int | None], float]) -> float:
    """How far the mean of a curved function of noisy numbers lies above its value at their mean.

    The function at the mean of n repeats has a bias of its own, from the noise of that mean; the jackknife takes it
    off, up to a part of the order of 1 / n².

    Args:
        mean_of_values: the mean over the repeats of the function.
        value_at_mean: the function at the mean of the repeats without one of them, or of all (None).

    >>> x = torch.tensor([1.0, 3.0])
    >>> def squared(left_out):
    ...     return float(x[[i for i in range(2) if i != left_out]].mean() ** 2)
    >>> excess(2, float((x**2).mean()), squared)  # the variance
    2.0
    """
    left_out = sum(map(value_at_mean, range(repeats))) / repeats
    return mean_of_values - (repeats * value_at_mean(None) - (repeats - 1) * left_out)
