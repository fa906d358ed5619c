"""Bernoulli masks as an exact mixture over counts: given its count, a Bernoulli mask is a uniformly random subset.

Gradients that were measured with fixed counts therefore give every moment under Bernoulli masks, for any density of t,
by weights that are known exactly. At small t, where nearly all Bernoulli draws mask nothing and one in a thousand
decides the variance, this is far less noisy than drawing them.

Legend: P maskable tokens, k = 1..P counts, f points of a fine grid of t.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.gradient.profile import GradientProfile
from stabledllm.noise.counts import count_coefficients, log_gamma
from stabledllm.noise.schedule import masked_count, p_mask

_FINE = 4096


@dataclass(frozen=True)
class CountWeights:
    """Weights by count of the masked sums ``G_M = sum_M grad CE_i`` of a row with P maskable tokens; all float64.

    >>> CountWeights(torch.zeros(2), torch.zeros(2), torch.zeros(3, 2), torch.zeros(3, 2)).bytes
    64
    """

    t: Tensor
    """Midpoints of the fine grid, shape (f,)."""
    step: Tensor
    """Widths of its cells, shape (f,)."""
    mean: Tensor
    """Weight of E_{|M|=k} G_M in the mean row gradient at t, shape (P, f)."""
    square: Tensor
    """Weight of E_{|M|=k} |G_M|^2 in the second moment at t, shape (P, f)."""

    @property
    def bytes(self) -> int:
        """Memory of all the weights."""
        return self.mean.nbytes + self.square.nbytes + self.t.nbytes + self.step.nbytes


_CACHED = 2**27
"""Size of the cache in bytes: the weights of a response of 500 tokens take 2**25, and data has many lengths."""
_cache: OrderedDict[tuple, CountWeights] = OrderedDict()


def count_weights(size: int, eps: float, power: float) -> CountWeights:
    """Binomial probabilities of the counts times the row loss's ``p^(power - 1) / P``, and times the square of that.

    The latest ones are cached, up to :data:`_CACHED` bytes.

    >>> weights = count_weights(1, eps=0.0, power=1.0)  # of one token, which is masked with probability t
    >>> torch.allclose(weights.mean[0], weights.t)
    True
    """
    key = size, eps, power
    weights = _cache.pop(key, None) or _count_weights(size, eps, power)
    _cache[key] = weights
    while sum(w.bytes for w in _cache.values()) > _CACHED:
        _cache.popitem(last=False)
    return weights


def _count_weights(size: int, eps: float, power: float) -> CountWeights:
    # The equal cells in which densities are tabulated; the lowest are split further, since p_mask is steep there.
    edges = torch.arange(_FINE + 1, dtype=torch.float64) / _FINE
    lowest = edges[16] * torch.arange(1, 256, dtype=torch.float64) / 256
    edges = torch.cat((edges, lowest)).unique()
    t, step = (edges[1:] + edges[:-1]) / 2, edges.diff()
    p, k = p_mask(t, eps), torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    ways = log_gamma(size + 1) - log_gamma(k + 1) - log_gamma(size - k + 1)
    mass = (ways + torch.special.xlogy(k, p) + torch.special.xlogy(size - k, 1 - p)).exp()
    weight = p ** (power - 1) / size
    return CountWeights(t, step, mass * weight, mass * weight**2)


def counts_of(profile: GradientProfile, i: int) -> tuple[CountWeights, Tensor, Tensor]:
    """Weights for row i, the count less 1 of each point, and 1 / c_k, by which a point's gradient becomes G_M.

    >>> from stabledllm.gradient.example import example_profile
    >>> weights, count, scale = counts_of(example_profile(), 0)
    >>> len(weights.mean) == int(example_profile().size[0]), len(count) == len(scale)
    (True, True)
    """
    size = int(profile.size[i])
    count = masked_count(profile.t[i], profile.size[i]) - 1
    scale = 1.0 / count_coefficients(size, profile.eps, profile.power)[count]
    return count_weights(size, profile.eps, profile.power), count, scale
