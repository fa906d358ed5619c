"""The variance of training steps, by really drawing them.

Where most masks at small t hide nothing, the rows drawn there are replaced by their mean and their variance comes from
the nested design (``variance/low_rates.py``): a few draws would decide it otherwise.

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
from stabledllm.stats.intervals import of_sum, of_variance, with_ends
from stabledllm.variance.components import UNIT
from stabledllm.variance.low_rates import LowRates, is_known_at_low_rates

_MEASURE_STEP = 0xEA5E_0000
HEAVY_SHARE = 0.02
"""Share of a variance from draws that are hardly ever seen, from which its error is not to be trusted."""


@dataclass(frozen=True)
class Measured:
    """Losses of drawn steps, and what they say."""

    row_losses: Tensor
    """Importance-weighted row losses, float64, shape (S, n)."""
    independent_rows: bool
    """Whether rows of one step are independent (iid u)."""
    cost: float
    """Forwards per row, as they were."""
    share: Tensor | None = None
    """What each row counts under the token mean, shape (S, n); None where all count the same."""
    low: Estimate | None = None
    """Variance that rows of small t add, where they are replaced by their mean in ``row_losses``."""
    low_error: float = 0.0
    """Standard error that replacing them gives the mean."""
    heavy_tail: bool = False
    """Whether a few draws decide the variance, so that it has no error to be trusted."""

    @property
    def deviations(self) -> Tensor:
        """Row losses less their share of the mean, shape (S, n)."""
        if self.share is None:
            return self.row_losses - self.row_losses.mean()
        return self.row_losses - self.share * (self.row_losses.sum() / self.share.sum())

    @property
    def mean(self) -> Estimate:
        """Mean row loss, or the token mean; the error is over steps."""
        steps, value = self.deviations.mean(1), self.row_losses.mean()
        if self.share is not None:
            value = self.row_losses.sum() / self.share.sum()
        error = (float(steps.var()) / len(steps) + self.low_error**2) ** 0.5
        return Estimate(value=float(value), stderr=error, n=len(steps), unit="nats/token")

    @property
    def squares(self) -> Tensor:
        """Squared deviations whose mean is (up to n - 1) the per-row variance: of rows, (S, n), or of steps, (S, 1)."""
        values = self.deviations if self.independent_rows else self.deviations.mean(1, keepdim=True)
        scale = 1 if self.independent_rows else self.row_losses.shape[1]
        return (values - values.mean()) ** 2 * scale

    @property
    def per_row_variance(self) -> Estimate:
        """n Var(step loss) in nats²; where rows are independent, from all rows, which is far more precise.

        The standard error is from the fourth moment, the interval chi-square's.
        """
        squares = self.squares.flatten()
        count = len(squares)
        value, error = float(squares.sum()) / (count - 1), float(squares.std()) / count**0.5
        if not self.independent_rows:  # of few steps the fourth moment is not known; of normal ones it would be this
            error = max(error, value * (2 / (count - 1)) ** 0.5)
        ends = of_variance(value, error, count - 1)
        if self.low is not None:
            ends = of_sum([(value, ends), with_ends(self.low)])
            value, error = value + self.low.value, (error**2 + self.low.stderr**2) ** 0.5
        if self.heavy_tail:
            error, ends = math.nan, None
        return Estimate(value=value, stderr=error, n=count, unit=UNIT, ends=ends)


def variance_covariance(one: Measured, other: Measured) -> float:
    """Covariance of two methods' per-row variances, in nats⁴: :func:`measure` shares draws between methods of one seed.

    Evaluation i has the same data row and mask draws in every method, place r of step s the same u (iid). Independent
    rows are matched both ways; steps of equal size step by step. For unequal sizes that are not both of independent
    rows it is left at 0, which widens the interval. The estimate averages 0 where nothing was shared.
    """
    a, b = (m.squares - m.squares.mean() for m in (one, other))
    steps = min(len(a), len(b))
    same_size = one.row_losses.shape[1] == other.row_losses.shape[1]
    if not (one.independent_rows and other.independent_rows):
        by_step = (a[:steps].mean(1) * b[:steps].mean(1)).sum()
        return float(by_step) / (len(a) * len(b)) if same_size else 0.0
    rows = min(a.numel(), b.numel())
    shared = (a.flatten()[:rows] * b.flatten()[:rows]).sum()
    if not same_size:  # The first step's places are its evaluations, already counted.
        places = min(a.shape[1], b.shape[1])
        shared = shared + (a[1:steps, :places] * b[1:steps, :places]).sum()
    return float(shared) / (a.numel() * b.numel())


def step_rows(method: Method, forwards: int, cost: float | None = None) -> int:
    """Rows of a step that costs ``forwards`` forward passes."""
    return max(1, round(forwards / (cost or method.views.count)))


def measure(
    meter: LossMeter,
    method: Method,
    sampler: TSampler,
    *,
    rows: int,
    steps: int,
    seed: int,
    low: LowRates | None = None,
) -> Measured:
    """Draw ``steps`` training steps of ``rows`` iid data rows each, as training would, and take their losses.

    Args:
        low: what is known of Standard's losses at small t, where drawn steps alone do not see their variance.
    """
    index = torch.arange(rows * steps)
    drawn = (Key(seed, _MEASURE_STEP).row_uniforms(Stream.RESAMPLE, index) * len(meter.rows)).long()
    u = torch.cat(
        [method.source.uniforms(Key(seed, _MEASURE_STEP + 1 + s), rows, torch.device("cpu")) for s in range(steps)]
    )
    t, before = sampler.icdf(u), meter.forwards
    losses = meter.losses(drawn, t, method, Key(seed, _MEASURE_STEP), sampler)
    cost = (meter.forwards - before) / len(index)
    share = meter.shares(method)[drawn] if meter.objective.normalization == "token" else None
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
