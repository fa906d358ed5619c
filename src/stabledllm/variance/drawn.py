"""The variance of training steps, measured on steps that are drawn as in training.

Where most masks at small t hide nothing, rows drawn there are replaced by their mean, and their variance is taken from
the nested design (``variance/low_rates.py``): otherwise a few draws would decide it.

Legend: S steps, n rows of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.forward.meter import LossMeter
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_sum, of_variance, tail_of, with_ends
from stabledllm.stats.shares import token_mean
from stabledllm.variance.components import UNIT
from stabledllm.variance.low_rates import LowRates, is_known_at_low_rates

_MEASURE_STEP = 0xEA5E_0000
HEAVY_SHARE = 0.02
"""Share of a variance that rarely seen draws may make up before its error is no longer trusted."""


@dataclass(frozen=True)
class Measured:
    """The losses of drawn steps, with their mean and variance.

    >>> drawn = Measured(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), independent_rows=True, cost=1.0)
    >>> drawn.mean.value, drawn.per_row_variance.value
    (1.0, 4.0)
    """

    row_losses: Tensor
    """Importance-weighted row losses, float64, shape (S, n)."""
    independent_rows: bool
    """Whether the rows of a step are independent, as with iid u."""
    cost: float
    """Forwards per row, as counted."""
    share: Tensor | None = None
    """Share of each row in the token mean, shape (S, n); None where all rows count the same."""
    low: Estimate | None = None
    """Variance of the rows of small t, where ``row_losses`` holds their mean in their place."""
    low_error: float = 0.0
    """Standard error of the mean that comes from replacing them."""
    heavy_tail: bool = False
    """Whether a few draws decide the variance, so that its error cannot be trusted."""

    @property
    def deviations(self) -> Tensor:
        """Row losses less the mean times their share, shape (S, n)."""
        mean = token_mean(self.row_losses, self.share)
        return self.row_losses - (mean if self.share is None else self.share * mean)

    @property
    def mean(self) -> Estimate:
        """Mean row loss, or the token mean; the error is over steps."""
        steps = self.deviations.mean(1)
        error = (float(steps.var()) / len(steps) + self.low_error**2) ** 0.5
        value = float(token_mean(self.row_losses, self.share))
        return Estimate(value=value, stderr=error, n=len(steps), unit="nats/token")

    @property
    def row_squares(self) -> Tensor:
        """Squared deviations of rows, shape (S, n)."""
        return self.deviations**2

    @property
    def squares(self) -> Tensor:
        """Squared deviations, of rows (S, n) or of steps (S, 1): their sum over their number less 1 is the variance."""
        values = self.deviations if self.independent_rows else self.deviations.mean(1, keepdim=True)
        scale = 1 if self.independent_rows else self.row_losses.shape[1]
        return (values - values.mean()) ** 2 * scale

    @property
    def per_row_variance(self) -> Estimate:
        """n Var(step loss) in nats²; where rows are independent it is taken over all rows, which is far more precise.

        The standard error is from the fourth moment, and the interval is chi-square's, with a tail that is allowed for
        as rows show it: a step has that of the mean of as many rows as its variance says that it averages.
        """
        squares = self.squares.flatten()
        count = len(squares)
        value, error = float(squares.sum()) / (count - 1), float(squares.std()) / count**0.5
        rows, together = self.row_squares.flatten(), 1.0
        if not self.independent_rows:  # few steps do not show the fourth moment: at least that of a normal law
            error = max(error, value * (2 / (count - 1)) ** 0.5)
            together = float(rows.sum()) / max(value * len(self.row_losses), 1e-300)
            together = min(max(together, 1.0), self.row_losses.shape[1])
        tail = tail_of(rows, count * together) / together
        ends = of_variance(value, value * (tail / count + 2 / (count - 1)) ** 0.5, count - 1)
        if self.low is not None:
            ends = of_sum([(value, ends), with_ends(self.low)])
            value, error = value + self.low.value, (error**2 + self.low.stderr**2) ** 0.5
        if self.heavy_tail:
            error, ends = math.nan, None
        return Estimate(value=value, stderr=error, n=count, unit=UNIT, ends=ends)


def variance_covariance(one: Measured, other: Measured) -> float:
    """Covariance of the per-row variances of two methods, in nats⁴, from the draws that :func:`measure` gives both.

    Under one seed evaluation i has the same data row and mask draws in every method, and place r of step s the same u
    (iid). Independent rows are matched in both ways, steps of equal size step by step. For steps of unequal size whose
    rows are not independent in both methods it is set to 0, which widens the interval. Where nothing was shared the
    estimate is 0 on average.

    >>> drawn = Measured(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), independent_rows=True, cost=1.0)
    >>> variance_covariance(drawn, drawn)  # the squares 1, 1, 1, 9 have the variance 12: that of their mean is 12 / 4
    3.0
    """
    a, b = (m.squares - m.squares.mean() for m in (one, other))
    steps = min(len(a), len(b))
    same_size = one.row_losses.shape[1] == other.row_losses.shape[1]
    if not (one.independent_rows and other.independent_rows):
        by_step = (a[:steps].mean(1) * b[:steps].mean(1)).sum()
        return float(by_step) / (len(a) * len(b)) if same_size else 0.0
    rows = min(a.numel(), b.numel())
    shared = (a.flatten()[:rows] * b.flatten()[:rows]).sum()
    if not same_size:  # in the first step place and evaluation are the same, and counted above
        places = min(a.shape[1], b.shape[1])
        shared = shared + (a[1:steps, :places] * b[1:steps, :places]).sum()
    return float(shared) / (a.numel() * b.numel())


def step_rows(method: Method, forwards: int, cost: float | None = None) -> int:
    """Number of rows of a step that costs ``forwards`` forwards.

    >>> step_rows(Method.parse("mirror"), forwards=32)
    16
    """
    return max(1, round(forwards / (cost or method.views.count)))


def drawn_rows(meter: LossMeter, count: int, seed: int) -> Tensor:
    """The index of each of ``count`` iid data rows, the same for every method.

    >>> from types import SimpleNamespace
    >>> int(drawn_rows(SimpleNamespace(rows=range(5)), 8, seed=0).max()) < 5
    True
    """
    return (Key(seed, _MEASURE_STEP).row_uniforms(Stream.RESAMPLE, torch.arange(count)) * len(meter.rows)).long()


def step_keys(seed: int, steps: int) -> list[Key]:
    """The key of all masks, and then that of the mask ratios of each step.

    >>> len(step_keys(seed=0, steps=4))
    5
    """
    return [Key(seed, _MEASURE_STEP + s) for s in range(steps + 1)]


def measure(
    meter: LossMeter, method: Method, sampler: TSampler, *, rows: int, steps: int, seed: int,
    low: LowRates | None = None,
) -> Measured:  # fmt: skip
    """Draw ``steps`` training steps of ``rows`` iid data rows each, as training would, and take their losses.

    Args:
        low: Standard's losses at small t, where drawn steps alone do not show their variance.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.objective import Objective
    >>> class Constant:  # a meter of five rows, whose losses are 1
    ...     rows, objective, forwards = range(5), Objective(), 0
    ...     def losses(self, row, t, method, key, sampler):
    ...         return torch.ones(len(row))
    >>> print(measure(Constant(), Method(), Uniform(), rows=8, steps=4, seed=0).mean)
    1 ± 0 nats/token (n=4)
    """
    drawn, (key, *keys) = drawn_rows(meter, rows * steps, seed), step_keys(seed, steps)
    u = torch.cat([method.source.uniforms(key, rows, torch.device("cpu")) for key in keys])
    t, before = sampler.icdf(u), meter.forwards
    losses = meter.losses(drawn, t, method, key, sampler)
    cost = (meter.forwards - before) / len(drawn)
    share = meter.shares(method)[drawn] if meter.objective.normalization != "row" else None
    rest = {}
    if low is not None and method.masker.independent:
        noise = low.noise(method, sampler)
        if is_known_at_low_rates(method):
            below = t < low.edge
            losses = torch.where(below, low.mean_at(t, sampler.weight(t)), losses)
            share = None if share is None else torch.where(below, 1.0, share)
            rest = {"low": noise, "low_error": low.mean_error(sampler)}
        else:
            rest = {"heavy_tail": noise.value > HEAVY_SHARE * float(losses.var())}
    share = None if share is None else share.view(steps, rows)
    return Measured(losses.view(steps, rows), method.source.independent, cost, share, **rest)
