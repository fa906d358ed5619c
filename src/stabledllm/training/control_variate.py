"""EMA: a control variate by bin of t for the *reported* loss. The gradient is provably unchanged.

Source: arXiv:2511.18159 (EMA), in the form of docs/mathematics.md#what-changes-the-objective-or-only-the-report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler


@dataclass
class EMAControlVariate:
    """Computes the adjusted loss ``l/p - c b_j(t) + c sum_j pi_j b_j``; its mean is that of l/p.

    That holds since b and c come from earlier steps only.

    b_j is an exponential moving average of l/p in bin j of t; c is the regression coefficient
    Cov(l/p, b_j) / Var(b_j), from moments that are forgotten at the same rate. No gradient flows
    through it: subtracting a number that does not depend on the parameters cannot change one.

    Args:
        bins: equal bins of t. rate: weight of a new value in the averages, in (0, 1].
    """

    bins: int = 10
    rate: float = 0.05
    mean: list[float] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    moments: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Exponentially forgetting sums of 1, l, b, l b and b b."""

    def __post_init__(self) -> None:
        if self.bins < 2 or not 0.0 < self.rate <= 1.0:
            raise ValueError(f"EMA: expected at least 2 bins and a rate in (0, 1], got {self.bins} and {self.rate}.")
        self.mean = self.mean or [0.0] * self.bins
        self.seen = self.seen or [False] * self.bins

    @property
    def coefficient(self) -> float:
        """c from the steps so far; 0 before there is anything to regress on."""
        n, l, b, lb, bb = self.moments
        variance = bb / n - (b / n) ** 2 if n else 0.0
        return (lb / n - l * b / n**2) / variance if variance > 1e-12 else 0.0

    def adjust(self, weighted_loss: Tensor, t: Tensor, sampler: TSampler) -> Tensor:
        """The adjusted losses of one step's rows, shape (n,); changes no state."""
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        share = sampler.cdf(edges).diff()
        baseline = torch.tensor(self.mean, dtype=torch.float64)
        return weighted_loss.detach() - self.coefficient * (baseline[self._bin(t)] - share @ baseline)

    def update(self, weighted_loss: Tensor, t: Tensor) -> None:
        """Learn from one step's rows after they were adjusted; their order matters, so pass them by position."""
        baseline = torch.tensor(self.mean, dtype=torch.float64)
        values, index = weighted_loss.detach().double().cpu(), self._bin(t).cpu()
        has_baseline = torch.tensor(self.seen)[index]
        l, b = values[has_baseline], baseline[index[has_baseline]]
        if len(l):
            new = (torch.ones_like(l), l, b, l * b, b * b)
            self.moments = [(1 - self.rate) * m + float(x.sum()) for m, x in zip(self.moments, new, strict=True)]
        for value, j in zip(values.tolist(), index.tolist(), strict=True):
            self.mean[j] = (1 - self.rate) * self.mean[j] + self.rate * value if self.seen[j] else value
            self.seen[j] = True

    def _bin(self, t: Tensor) -> Tensor:
        return (t * self.bins).long().clamp(0, self.bins - 1)


def default_rate(bins: int, train_rows: int) -> float:
    """The rate by the paper's rule, bins x (batch / rate) = 0.1 x the training set, for averages updated row by row.

    The rule remembers 0.1 N / bins rows, so 0.1 N / bins**2 in each bin; the rate is kept within [0.01, 0.5].
    """
    return min(0.5, max(0.01, bins**2 / (0.1 * train_rows)))
