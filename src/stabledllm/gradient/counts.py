"""Bernoulli masks as an exact mixture over counts: given its count, a Bernoulli mask is a uniformly random subset.

Gradients that were measured with fixed counts therefore give every moment under Bernoulli masks, for any density of t,
by weights that are known but for the error of a fine grid of t (2e-5 of their sum). At small t, where nearly all
Bernoulli draws mask nothing and one in a thousand decides the variance, this is far less noisy than drawing them.

Under a window or bell t is the place in it, as everywhere: the objective says which mask ratio, and which count, t
stands for.

Legend: P maskable tokens, k = 1..P counts, f points of a fine grid of t, n points of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.gradient.profile import GradientProfile
from stabledllm.noise.bell import Bell, quantile, share_below
from stabledllm.noise.counts import log_gamma
from stabledllm.noise.densities import Uniform
from stabledllm.noise.maskers.fixed_count import count_mass
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import largest_ratio, masked_count

_FINE, _SPLIT, _LOWEST = 4096, 256, 16


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


def count_weights(size: int, objective: Objective) -> CountWeights:
    """Binomial probabilities of the counts times the row loss's ``p^(power - 1) / P``, and times the square of that.

    The objective's constant factor is left out: it is in every gradient already. The latest ones are cached, up to
    :data:`_CACHED` bytes.

    >>> weights = count_weights(1, Objective("unweighted", eps=0.0))  # of one token, masked with probability t
    >>> torch.allclose(weights.mean[0], weights.t)
    True
    """
    key = size, objective
    weights = _cache.pop(key, None) or _count_weights(size, objective)
    _cache[key] = weights
    while sum(w.bytes for w in _cache.values()) > _CACHED:
        _cache.popitem(last=False)
    return weights


def _count_weights(size: int, objective: Objective) -> CountWeights:
    # The equal cells in which densities are tabulated. The lowest are split further, since p_mask is steep there, and
    # under a bell the highest too, where it is as steep.
    edges = torch.arange(_FINE + 1, dtype=torch.float64) / _FINE
    low, bell = edges[_LOWEST], objective.bell
    highest = [1 - _split(low, bell[::-1])] if bell else []
    edges = torch.cat((edges, _split(low, bell), *highest)).unique()
    t, step = (edges[1:] + edges[:-1]) / 2, edges.diff()
    p, k = objective.p_mask(t), torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    ways = log_gamma(size + 1) - log_gamma(k + 1) - log_gamma(size - k + 1)
    mass = (ways + torch.special.xlogy(k, p) + torch.special.xlogy(size - k, 1 - p)).exp()
    weight = p ** (objective.power - 1) / size
    return CountWeights(t, step, mass * weight, mass * weight**2)


def _split(top: Tensor, bell: Bell | None) -> Tensor:
    """Edges that split the cells of t below ``top`` evenly, or of the bell's mask ratio there: it rises as a root."""
    even = torch.arange(1, _SPLIT, dtype=torch.float64) / _SPLIT
    if not bell:
        return top * even
    ratio = quantile(top, bell) * even
    return torch.tensor([share_below(r, bell) for r in ratio.tolist()], dtype=torch.float64)


@dataclass(frozen=True)
class PointCounts:
    """The counts of the points of one row, and what turns their gradients into those of counts.

    >>> from stabledllm.gradient.example import example_profile
    >>> found = counts_of(example_profile(), 0)
    >>> len(found.weights.mean) == int(example_profile().size[0]), len(found.index) == len(found.scale)
    (True, True)
    """

    weights: CountWeights
    index: Tensor
    """The count of each point less 1, int64, shape (n,)."""
    scale: Tensor
    """The factor by which a point's gradient becomes G_M, float64, shape (n,)."""
    share: Tensor
    """One over the probability that a uniform t gives the point's count, float64, shape (n,): a mean over t times it is
    a sum over counts. P where all counts are alike."""


def counts_of(profile: GradientProfile, i: int) -> PointCounts:
    """The counts of row i's points, by the rule of the profile's objective.

    >>> from stabledllm.gradient.example import example_profile
    >>> (counts_of(example_profile(), 0).share == example_profile().size[0]).all()
    tensor(True)
    """
    size, objective = int(profile.size[i]), profile.objective
    k = masked_count(profile.t[i], profile.size[i], objective.counts)
    scale = 1.0 / coefficients_at_unit_weight(objective, k, size)
    return PointCounts(count_weights(size, objective), k - 1, scale, share_of_counts(objective, k, size))


def share_of_counts(objective: Objective, k: Tensor, size: int) -> Tensor:
    """One over the probability of each count k of ``size`` tokens under uniform t, float64, shape of k.

    >>> share_of_counts(Objective(), torch.tensor([1, 3]), 3)
    tensor([3., 3.], dtype=torch.float64)
    """
    if not objective.has_places:
        return torch.full(k.shape, size, dtype=torch.float64)
    return 1.0 / count_mass(Uniform(), k, torch.tensor(size), objective.counts)


def coefficients_at_unit_weight(objective: Objective, k: Tensor, size: int) -> Tensor:
    """The factor of ``sum_M CE_i`` in the row loss of k of ``size`` tokens under uniform t, float64, shape of k.

    It is c_k (``Objective.coefficients``), under a window or bell divided by P times the probability of k, which is 1
    elsewhere. The objective's constant factor is left out.

    >>> coefficients_at_unit_weight(Objective(eps=0.0), torch.tensor([1, 2]), 2)
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    c = objective.coefficients(size)[k - 1]
    return c * (share_of_counts(objective, k, size) / size) if objective.has_places else c


def places_of_counts(size: int, objective: Objective) -> Tensor:
    """The middle of the cell of t in which each count k = 1..P is the one that is masked; float64, (P,).

    >>> places_of_counts(2, Objective())
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    k = torch.arange(1, size + 1)
    low, high = (largest_ratio(each, torch.tensor(size), objective.counts) for each in (k - 1, k))
    return (low + high) / 2


def counts_in_cells(k: Tensor, size: int, objective: Objective, edges: Tensor) -> Tensor:
    """The part of each of b cells of t at which a count is the one that is masked; float64, (J, b).

    >>> counts_in_cells(torch.tensor([1]), 2, Objective(), torch.tensor([0.0, 0.25, 1.0]).double())
    tensor([[0.2500, 0.2500]], dtype=torch.float64)
    """
    low, high = (largest_ratio(each, torch.tensor(size), objective.counts)[:, None] for each in (k - 1, k))
    return (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0)
