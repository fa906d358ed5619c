"""The variance of training steps, by really drawing them.

Legend: S steps, n rows of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.measure import LossMeter
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.t_samplers import TSampler
from stabledllm.variance.nested import UNIT

_MEASURE_STEP = 0xEA5E_0000


@dataclass(frozen=True)
class Measured:
    """Losses of drawn steps, and what they say."""

    row_losses: Tensor
    """Importance-weighted row losses, float64, shape (S, n)."""
    independent_rows: bool
    """Whether rows of one step are independent (iid u)."""
    cost: float
    """Forwards per row, as they were."""

    @property
    def mean(self) -> Estimate:
        """Mean row loss; the error is over steps."""
        steps = self.row_losses.mean(1)
        return Estimate(
            value=float(steps.mean()), stderr=float(steps.std() / len(steps) ** 0.5), n=len(steps), unit="nats/token"
        )

    @property
    def squares(self) -> Tensor:
        """Squared deviations whose mean is (up to n - 1) the per-row variance: of rows, (S, n), or of steps, (S, 1)."""
        values = self.row_losses if self.independent_rows else self.row_losses.mean(1, keepdim=True)
        scale = 1 if self.independent_rows else self.row_losses.shape[1]
        return (values - values.mean()) ** 2 * scale

    @property
    def per_row_variance(self) -> Estimate:
        """n Var(step loss) in nats²; where rows are independent, from all rows, which is far more precise.

        The standard error is from the fourth moment.
        """
        squares = self.squares.flatten()
        count = len(squares)
        return Estimate(
            value=float(squares.sum()) / (count - 1), stderr=float(squares.std()) / count**0.5, n=count, unit=UNIT
        )


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


def measure(meter: LossMeter, method: Method, sampler: TSampler, *, rows: int, steps: int, seed: int) -> Measured:
    """Draw ``steps`` training steps of ``rows`` iid data rows each, as training would, and take their losses."""
    index = torch.arange(rows * steps)
    drawn = (Key(seed, _MEASURE_STEP).row_uniforms(Stream.RESAMPLE, index) * len(meter.rows)).long()
    u = torch.cat(
        [method.source.uniforms(Key(seed, _MEASURE_STEP + 1 + s), rows, torch.device("cpu")) for s in range(steps)]
    )
    before = meter.forwards
    losses = meter.losses(drawn, sampler.icdf(u), method, Key(seed, _MEASURE_STEP), sampler)
    cost = (meter.forwards - before) / len(index)
    return Measured(losses.view(steps, rows), method.source.name == "iid", cost)
