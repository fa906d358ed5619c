"""How much each step counts in an average of the weights: EMA, tail, and EDM2's power functions.

Every rule is one recursion: the average moves towards the weights theta_n after the n-th step that it counts,

    average_n = average_{n-1} + move(n) (theta_n - average_{n-1}),    move(1) = 1,

so that it is a mean of theta_1 to theta_n whose profile, the weights of the steps, is known exactly and sums to 1:

- ``ema``: the profile is proportional to decay^(n - i). It is the recursion with move(n) = (1 - decay) / (1 - decay^n),
  which leaves no weight on the first value, as the plain one does with decay^n.
- ``tail``: 1 / n over the last share of the run's steps; move(n) = 1 / n.
- ``power``: Karras et al. 2024 (EDM2, arXiv:2312.02696), section 3.1: move(n) = 1 - (1 - 1/n)^(gamma + 1), and the
  profile is (i/n)^(gamma + 1) - ((i - 1)/n)^(gamma + 1), the density (gamma + 1) t^gamma / n^(gamma + 1) by steps. Its
  width, the sd of that density as a share of n, is sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stabledllm.config.settings import AverageSettings

Kind = Literal["ema", "tail", "power"]


@dataclass(frozen=True)
class Rule:
    """One average.

    ``kind`` and ``value``: the decay of an EMA, the share of the steps of a tail, the width of a power function.
    """

    kind: Kind
    value: float

    @property
    def name(self) -> str:
        """The name in records and of folders.

        >>> Rule("ema", 0.999).name
        'ema-0.999'
        """
        return f"{self.kind}-{self.value!r}"

    def begins_after(self, steps: int) -> int:
        """The number of steps of a run of ``steps`` that do not count, before those that do.

        >>> Rule("tail", 0.25).begins_after(150), Rule("ema", 0.9).begins_after(150)
        (112, 0)
        """
        # Without the rounding 0.7 of 10 steps would be 8 of them.
        return steps - math.ceil(round(self.value * steps, 9)) if self.kind == "tail" else 0

    def move(self, n: int) -> float:
        """How far the average moves towards the weights after the ``n``-th step that counts, in (0, 1]."""
        if n == 1:
            return 1.0
        if self.kind == "ema":
            return (1 - self.value) / -math.expm1(n * math.log(self.value))
        if self.kind == "tail":
            return 1 / n
        return -math.expm1((exponent(self.value) + 1) * math.log1p(-1 / n))

    def profile(self, steps: np.ndarray, n: int) -> np.ndarray:
        """The weights of some steps, counted from 1, in the average after ``n`` that count; those of all n sum to 1."""
        inside = steps <= n
        steps = np.minimum(steps, n)
        if self.kind == "ema":
            weights = self.value ** (n - steps) * (1 - self.value) / -math.expm1(n * math.log(self.value))
        elif self.kind == "tail":
            weights = np.full(steps.shape, 1 / n)
        else:
            power = exponent(self.value) + 1
            weights = (steps / n) ** power - ((steps - 1) / n) ** power
        return np.where(inside, weights, 0.0)


def rules_of(settings: AverageSettings) -> list[Rule]:
    """The averages that a run is asked for, in the order of the settings' keys."""
    return [Rule(kind, value) for kind in ("ema", "tail", "power") for value in getattr(settings, kind)]


def exponent(width: float) -> float:
    """The gamma of a power function of a width sigma_rel in (0, 0.2886): EDM2's algorithm 2.

    >>> gamma = exponent(0.1)
    >>> round(gamma, 2), round(math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))), 12)
    (6.94, 0.1)
    """
    square = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root)))
