"""Densities of the mask ratio t, each with its inverse CDF, log density and importance weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stabledllm.errors import UserError


class TSampler(Protocol):
    """A density p on t whose sampler, density and weight agree.

    ``t = icdf(u)`` for uniform u has density ``exp(log_prob(t))``. For an unbiased sampler
    ``weight(t) = 1 / p(t)`` and E[weight] = 1 over all of [0, 1], so the objective's mean is unchanged.
    """

    name: str
    unbiased: bool

    def icdf(self, u: Tensor) -> Tensor:
        """t for uniform u in [0, 1); same shape, float64."""
        ...

    def cdf(self, t: Tensor) -> Tensor:
        """Probability of [0, t]; same shape, float64."""
        ...

    def log_prob(self, t: Tensor) -> Tensor:
        """Natural logarithm of the density at t; minus infinity outside the support."""
        ...

    def weight(self, t: Tensor) -> Tensor:
        """Importance weight of a row drawn at t."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The uniform density on [0, 1]; every weight is 1."""

    name = "uniform"
    unbiased = True

    def icdf(self, u: Tensor) -> Tensor:
        return u

    def cdf(self, t: Tensor) -> Tensor:
        return t.clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, 0.0, -torch.inf).to(t.dtype)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Clipped:
    """U[low, high] with weight 1. Biased: ratios outside the interval are never trained.

    The paper's interval is not published; [0.3, 0.8] is dFactory's.

    Raises:
        UserError: unless 0 <= low < high <= 1.
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

    def icdf(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u

    def cdf(self, t: Tensor) -> Tensor:
        return ((t - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -torch.inf).to(t.dtype)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Tabulated:
    """Piecewise constant density; its CDF, inverse CDF and weight are exact for that same density.

    E[weight] = 1 for any positive table, because the weight is the reciprocal of the density that
    is drawn from, not of the curve the table came from.

    Args:
        values: positive, unnormalised density on ``len(values)`` equal cells. With a power of two of
            equal values, ``icdf`` is the identity bit for bit.
        normalized: the values are already a density: take them as they are, so that a saved table is
            restored bit for bit.

    Raises:
        ValueError: if a value is not positive and finite.
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
        """Defensive mixture ``share + (1 - share) p``: no weight exceeds ``1 / share``."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"uniform share must be in [0, 1], got {share}.")
        return Tabulated(share + (1.0 - share) * self.density, name=self.name)

    def cell(self, t: Tensor) -> Tensor:
        """Index of the cell that holds t."""
        return (t * len(self)).long().clamp(0, len(self) - 1)

    def icdf(self, u: Tensor) -> Tensor:
        lower, upper, density = (x.to(u.device) for x in (self._lower, self._upper, self.density))
        j = torch.searchsorted(upper, u.double(), right=True).clamp(max=len(self) - 1)
        inside = ((u - lower[j]) * len(self) / density[j]).clamp(0.0, 1.0)
        t = (j + inside) / len(self)
        # Rounding must not push t over its cell's edge: its weight would be its neighbour's.
        return torch.minimum(t, torch.nextafter((j.double() + 1.0) / len(self), torch.zeros_like(t)))

    def cdf(self, t: Tensor) -> Tensor:
        lower, density, t = self._lower.to(t.device), self.density.to(t.device), t.double()
        j = self.cell(t)
        # j is an integer: divided as it is, it would be rounded to the default dtype.
        return (lower[j] + (t.clamp(0, 1) - j.double() / len(self)) * density[j]).clamp(0.0, 1.0)

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, self.density.to(t.device)[self.cell(t)].log(), -torch.inf)

    def weight(self, t: Tensor) -> Tensor:
        return 1.0 / self.density.to(t.device)[self.cell(t)]

    def relative_ess(self) -> float:
        """Relative effective sample size of the weights, ``1 / ∫ 1/p dt`` in (0, 1]."""
        return 1.0 / float((1.0 / self.density).mean())
