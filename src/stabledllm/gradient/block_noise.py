"""The noise of drawn steps' gradients in blocks, and its ratio to Standard's at equal compute.

Where masks are independent and of single views, the steps were drawn given that every block hides a token, and what
that leaves out of their variance is added from the gradients of single blocks.

Legend: S steps, u units, Q blocks of coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.gradient.block_components import UnitNoise, mean_of
from stabledllm.gradient.components import UNIT
from stabledllm.gradient.steps import StepGradients, variance_covariance
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.ppots.profile import LEAST_SEEN
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ends, Ratio, of_sum, scaled, with_ends
from stabledllm.variance.comparison import ratio_at_equal_compute
from stabledllm.variance.drawn import HEAVY_SHARE
from stabledllm.variance.predicted import at_equal_compute
from stabledllm.variance.some_masked import chance_of_some


@dataclass(frozen=True)
class StepNoiseInBlocks:
    """What was measured of a method's raw gradient.

    >>> steps = StepGradients({"raw": torch.eye(4) + 1}, rows=2, cost=1.0, clipped_share=0.0)
    >>> StepNoiseInBlocks(steps, 1.0, hidden=torch.ones(1, 8)).per_row_variance.value  # 2 x 1, and 1
    3.0
    """

    steps: StepGradients
    cost: float
    """Forwards per row."""
    hidden: Tensor
    """What the drawn steps leave out of the variance of a row, as a mean over units, shape (Q, u)."""
    heavy_tail: bool = False
    """Whether a few draws decide the variance, so that its error cannot be trusted."""

    @property
    def drawn(self) -> Estimate:
        """n tr Var of the steps as drawn; without an error where a few draws decide."""
        found = self.steps.per_row_variance()
        return replace(found, stderr=math.nan, ends=None) if self.heavy_tail else found

    @property
    def per_row_variance(self) -> Estimate:
        """n tr Var(step gradient)."""
        drawn, hidden = self.drawn, mean_of(self.hidden)
        ends = of_sum([with_ends(drawn), with_ends(hidden)])
        error = math.hypot(drawn.stderr, hidden.stderr)
        ends = None if math.isnan(sum(ends)) else ends
        return Estimate(value=drawn.value + hidden.value, stderr=error, n=drawn.n, unit=UNIT, ends=ends)

    def at_equal_compute(self, data_noise: Estimate) -> Estimate:
        """Noise at equal compute, ``F Var(step of F forwards) - C``."""
        return replace(at_equal_compute(self.per_row_variance, self.cost, data_noise), unit=UNIT)

    def over(self, standard: StepNoiseInBlocks, data_noise: Estimate) -> Ratio:
        """The noise at equal compute over Standard's; step s has the same rows and random numbers in both."""
        one, other = (scaled(with_ends(each.drawn), each.cost) for each in (self, standard))
        covariance = variance_covariance(self.steps, standard.steps)
        errors = self.drawn.stderr * standard.drawn.stderr
        correlation = covariance / errors if errors > 0 else 0.0

        def hidden(r: float) -> tuple[float, Ends]:
            return with_ends(mean_of(self.cost * self.hidden - r * standard.cost * standard.hidden))

        return ratio_at_equal_compute(one, other, correlation, with_ends(data_noise), hidden)


def few_draws_decide(units: UnitNoise, method: Method, sampler: TSampler, draws: float, variance: float) -> bool:
    """Whether much of a variance comes from t at which fewer than ``LEAST_SEEN`` of so many draws hide a token.

    >>> from stabledllm.gradient.example import example_in_blocks
    >>> units, mirror = example_in_blocks()[0], Method.parse("mirror")
    >>> [few_draws_decide(units, mirror, mirror.sampler(), draws, 100.0) for draws in (100.0, 1e9)]
    [True, False]
    """

    def rare(t: Tensor, size: Tensor) -> Tensor:
        width = torch.diff(t, prepend=t.new_zeros(1))
        seen = chance_of_some(t, size, units.objective) * sampler.log_prob(t).exp().nan_to_num() * width
        return (draws * seen.cumsum(0) < LEAST_SEEN).double()

    return float(units.second(sampler, rare).mean()) / method.views.count > HEAVY_SHARE * variance
