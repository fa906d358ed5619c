"""Samplers: densities of the mask ratio t, each with its inverse CDF, log density and importance weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError


@dataclass(frozen=True)
class Uniform:
    """The uniform density on [0, 1], in which every weight is 1, and the pattern of the other samplers.

    ``t = icdf(u)`` for uniform u has density ``exp(log_prob(t))``. For an unbiased sampler ``weight(t) = 1 / p(t)`` and
    E[weight] = 1 over all of [0, 1], so the objective's mean is unchanged.

    >>> Uniform().icdf(torch.tensor([0.25, 0.5]))
    tensor([0.2500, 0.5000])
    """

    low = 0.0
    high = 1.0
    name = "uniform"
    unbiased = True
    """Whether weighting by ``weight`` keeps the objective's mean."""

    def icdf(self, u: Tensor) -> Tensor:
        """The mask ratios t of uniform u in [0, 1); same shape."""
        return self.low + (self.high - self.low) * u

    def cdf(self, t: Tensor) -> Tensor:
        """The probability of [0, t]; same shape."""
        return ((t - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        """The natural logarithm of the density at t; minus infinity outside the support."""
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -torch.inf).to(t.dtype)

    def weight(self, t: Tensor) -> Tensor:
        """The importance weight of a row drawn at t."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class Clipped(Uniform):
    """The uniform density on [low, high], with weight 1: biased, since ratios outside the interval are never trained.

    The paper's interval is not published; [0.3, 0.8] is dFactory's.

    Raises:
        UserError: unless 0 <= low < high <= 1.

    >>> Clipped(0.25, 0.75).icdf(torch.tensor([0.0, 0.5]))
    tensor([0.2500, 0.5000])
    """

    low: float = 0.3
    high: float = 0.8
    name = "clipped"
    unbiased = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise UserError(
                f"clipped: expected an interval 0 <= low < high <= 1, found low={self.low:g}, high={self.high:g}."
            )


class Tabulated:
    """A piecewise constant density, whose CDF, inverse CDF and weight are exact.

    E[weight] = 1 for any positive table, because the weight is the reciprocal of the very density that t is drawn
    from, not of the curve that the table was made from.

    Args:
        values: positive, unnormalised density on ``len(values)`` equal cells. If the values are equal and their number
            is a power of two, ``icdf`` is the identity bit for bit.
        normalized: whether the values are a density already; they are then used as they are, so that a saved table is
            restored bit for bit.

    Raises:
        ValueError: if a value is not positive and finite.

    >>> sampler = Tabulated([3.0, 1.0])  # three quarters of the draws lie below t = 1/2
    >>> sampler.icdf(torch.tensor([0.75])), sampler.weight(torch.tensor([0.75]))
    (tensor([0.5000], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    unbiased = True

    def __init__(self, values: Sequence[float] | Tensor, name: str = "tabulated", *, normalized: bool = False):
        table = torch.as_tensor(values, dtype=torch.float64).cpu()
        if table.dim() != 1 or not len(table) or not bool((torch.isfinite(table) & (table > 0)).all()):
            raise ValueError("a tabulated density needs a non-empty list of positive, finite values.")
        self.name = name
        # fsum rounds once, so that a flat table is exactly 1 everywhere.
        mean = math.fsum(table.tolist()) / len(table)
        if normalized and abs(mean - 1.0) > 1e-9:
            raise ValueError(f"a density of mean 1, found mean {mean:.6g}")
        self.density = table if normalized else table / mean
        cumulative = torch.cumsum(self.density, 0) / len(table)
        cumulative[-1] = 1.0
        self._upper = cumulative
        self._lower = torch.cat((torch.zeros(1, dtype=torch.float64), cumulative[:-1]))

    def __len__(self) -> int:
        return len(self.density)

    def mix_uniform(self, share: float) -> Tabulated:
        """The defensive mixture ``share + (1 - share) p``, of which no weight exceeds ``1 / share``."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"uniform share must be in [0, 1], got {share}.")
        return Tabulated(share + (1.0 - share) * self.density, name=self.name)

    def cell(self, t: Tensor) -> Tensor:
        """The index of the cell that holds t."""
        return (t * len(self)).long().clamp(0, len(self) - 1)

    def icdf(self, u: Tensor) -> Tensor:
        lower, upper, density = (x.to(u.device) for x in (self._lower, self._upper, self.density))
        j = torch.searchsorted(upper, u.double(), right=True).clamp(max=len(self) - 1)
        inside = ((u - lower[j]) * len(self) / density[j]).clamp(0.0, 1.0)
        t = (j + inside) / len(self)
        # Rounding must not push t over its cell's edge: it would get the weight of the next cell.
        return torch.minimum(t, torch.nextafter((j.double() + 1.0) / len(self), torch.zeros_like(t)))

    def cdf(self, t: Tensor) -> Tensor:
        lower, density, t = self._lower.to(t.device), self.density.to(t.device), t.double()
        j = self.cell(t)
        # Dividing the integer j itself would round to the default dtype.
        return (lower[j] + (t.clamp(0, 1) - j.double() / len(self)) * density[j]).clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, self.density.to(t.device)[self.cell(t)].log(), -torch.inf)

    def weight(self, t: Tensor) -> Tensor:
        return 1.0 / self.density.to(t.device)[self.cell(t)]

    def relative_ess(self) -> float:
        """The relative effective sample size of the weights, ``1 / ∫ 1/p dt`` in (0, 1]."""
        return 1.0 / float((1.0 / self.density).mean())


TSampler = Uniform | Clipped | Tabulated
"""An object that draws the mask ratio t from a density p and knows that density and its importance weight."""
