"""What a density of the mask ratio t must provide."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
