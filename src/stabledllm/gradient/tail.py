"""The tail of the squared gradient norm, which is heavy where one or two tokens are masked and the loss is 1/t."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.gradient.counts import CountWeights, counts_of
from stabledllm.gradient.profile import GradientProfile
from stabledllm.stats.pareto import pareto_k

_QUANTILES = 256
_DRAWS = 20_000


def tail_shape(profile: GradientProfile) -> float:
    """Pareto-k of |g|² for iid uniform t and Bernoulli masks, from measured counts.

    Each point stands for all draws of its count, at the quantiles of t given that count. The weighted values are
    resampled systematically, as many as a long training run would draw.

    >>> from stabledllm.gradient.example import example_profile
    >>> 0 < tail_shape(example_profile()) < 2
    True
    """
    values, masses = [torch.zeros(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    squares = profile.squares().mean(0)
    given: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # rows of one length have the same weights
    for i in range(len(profile.rows)):
        found = counts_of(profile, i)
        weights, count, scale = found.weights, found.index, found.scale
        share = profile.point_width * found.share
        for k in count.unique().tolist():
            of_k, key = count == k, (int(profile.size[i]), k)
            if key not in given:
                given[key] = _given_count(weights, k)
            probability, coefficient = given[key]
            values.append(torch.outer((squares[i] * scale**2)[of_k], coefficient).flatten())
            masses.append((share[of_k] * probability / _QUANTILES).repeat_interleave(_QUANTILES))
        # The rest of the probability is that of masking nothing.
        masses[0] += 1.0 - sum(m.sum() for m in masses[-len(count.unique()) :])
    return shape_of(torch.cat(values), torch.cat(masses).clamp(min=0))


def shape_of(value: Tensor, mass: Tensor) -> float:
    """Pareto-k of a law with such values of such probabilities, from as many draws as in a long training run.

    >>> shape_of(torch.linspace(0, 1, 1000).double(), torch.ones(1000).double()) < 0
    True
    """
    position = (torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS
    index = torch.searchsorted(mass.cumsum(0) / mass.sum(), position).clamp(max=len(value) - 1)
    return pareto_k(value[index].numpy())


def _given_count(weights: CountWeights, k: int) -> tuple[Tensor, Tensor]:
    """The probability of a count, and the squares of its coefficient at the quantiles of t given it, shape (f,)."""
    # By the weights' definition binomial mass = mean² / square and coefficient = square / mean.
    mass = (weights.mean[k] ** 2 / weights.square[k].clamp(min=1e-300)) * weights.step
    return mass.sum(), (weights.square[k] / weights.mean[k].clamp(min=1e-300))[_quantiles(mass)] ** 2


def _quantiles(mass: Tensor) -> Tensor:
    """Indices of the midpoints of equal shares of a mass, shape (f,)."""
    position = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    return torch.searchsorted(mass.cumsum(0) / mass.sum(), position).clamp(max=len(mass) - 1)
