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
    def per_row_variance(self) -> Estimate:
        """n Var(step loss) in nats²; where rows are independent, from all rows, which is far more precise.

        The standard error is from the fourth moment.
        """
        n = self.row_losses.shape[1]
        values, scale = (self.row_losses.flatten(), 1) if self.independent_rows else (self.row_losses.mean(1), n)
        squares = (values - values.mean()) ** 2
        count = len(values)
        return Estimate(
            value=float(squares.sum()) / (count - 1) * scale,
            stderr=float(squares.std()) / count**0.5 * scale,
            n=count,
            unit=UNIT,
        )


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
