"""Laws of a row's loss whose moments are known: what the fake meters draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def nodes(low: float, high: float, count: int = 12) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [low, high]."""
    x, w = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(w * half)


def line(at_0: float, slope: float) -> Callable[[Tensor], Tensor]:
    """The straight line ``at_0 + slope t``."""
    return lambda t: at_0 + slope * t


RISING, FALLING = line(1, 1), line(2, -1)


@dataclass(frozen=True)
class Law:
    """``l_k = x_i h(t) + sd(t) z_k``: x_i of mean 1 and variance ``tau2`` over rows, z_k of correlation ``rho``.

    Integrals are exact where h and sd are polynomials, as lines are.
    """

    tau2: float = 0.25
    rho: float = 0.0
    h: Callable[[Tensor], Tensor] = RISING
    sd: Callable[[Tensor], Tensor] = FALLING
    heavy: bool = False
    """z is a centred Exp(1) instead of a normal."""

    def second_moment(self, t: Tensor, views: int = 1) -> Tensor:
        return self.h(t) ** 2 * (1 + self.tau2) + self.sd(t) ** 2 * (1 + (views - 1) * self.rho) / views

    def integral(self, f, low: float = 0.0, high: float = 1.0) -> float:
        t, w = nodes(low, high)
        return float(f(t) @ w)

    @property
    def mean(self) -> float:
        return self.integral(self.h)

    @property
    def h_variance(self) -> float:
        """Variance of h(t) under a uniform t."""
        return self.integral(lambda t: (self.h(t) - self.mean) ** 2)

    @property
    def pattern(self) -> float:
        """A of one view."""
        return self.integral(lambda t: self.sd(t) ** 2)

    @property
    def rate(self) -> float:
        """B."""
        return (1 + self.tau2) * self.h_variance

    @property
    def data(self) -> float:
        """C."""
        return self.tau2 * self.mean**2

    @property
    def total(self) -> float:
        return self.pattern + self.rate + self.data

    def within_cells(self, width: Tensor) -> float:
        """``E sum w^2 Var_cell(g)`` of a straight h: what the cells design moves from B to C."""
        return self.rate * float((width**4).sum())


def linear_law(
    tau2: float = 0.25, h0: float = 1.0, h1: float = 2.0, s0: float = 1.5, s1: float = -1.0, rho: float = 0.0
) -> Law:
    """The law with ``h = h0 + h1 t`` and ``sd = s0 + s1 t``."""
    return Law(tau2, rho, line(h0, h1), line(s0, s1))
