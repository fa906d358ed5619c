"""The fixed-count masker: exactly k of the P maskable tokens, so that the noise of the count costs nothing to remove.

Source: arXiv:2409.02908 and LLaDA's likelihood evaluation; with eps > 0 the weights below make the objective exactly
that of Bernoulli masks (docs/mathematics.md#the-oracle).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler, Uniform
from stabledllm.noise.maskers.base import Masker, MaskInput
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import Counts, largest_ratio, masked_count

_GRID_CELLS = 4096


def coefficients_of(counts: Tensor, size: Tensor, objective: Objective) -> Tensor:
    """The ``count_coefficients`` c_k of each row's own counts k, float64, shape of ``counts``.

    Args:
        counts: int64, shape (B,) or (B, K), each in [1, P].
        size: P of each row, shape (B,).

    >>> coefficients_of(torch.tensor([1, 4]), torch.tensor([2, 8]), Objective(eps=0.0))
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    c = torch.empty(counts.shape, dtype=torch.float64, device=counts.device)
    for one_size in size.unique().tolist():
        rows = size == one_size
        c[rows] = objective.coefficients(one_size).to(c.device)[counts[rows] - 1]
    return c


def count_mass(sampler: TSampler, counts: Tensor, size: Tensor, schedule: Counts = "linear") -> Tensor:
    """The probability pi_k that k tokens are masked, for each given k; float64, shape of ``counts``.

    >>> count_mass(Tabulated([3.0, 1.0]), torch.tensor([1, 2]), torch.tensor(2))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    return sampler.cdf(largest_ratio(counts, size, schedule)) - sampler.cdf(largest_ratio(counts - 1, size, schedule))


def count_masses(sampler: TSampler, size: int, schedule: Counts = "linear") -> Tensor:
    """The :func:`count_mass` pi_k of all counts k = 1..P, float64, shape (P,).

    >>> count_masses(Uniform(), 4)
    tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    return count_mass(sampler, torch.arange(1, size + 1), torch.tensor(size), schedule)


def flat_on_counts(masses: Callable[[TSampler], Tensor], sampler: TSampler, size: int, schedule: Counts) -> Tabulated:
    """The density that is flat on each count's cell of t and has there the mass that ``masses`` of a sampler gives it.

    The unequal cells of ``cosine``, a window and a bell do not fit a grid of equal cells: the density is exact except
    in the grid's cells that hold an edge.

    >>> flat_on_counts(lambda p: count_masses(p, 2), Tabulated([3.0, 1.0]), 2, "linear").density
    tensor([1.5000, 0.5000], dtype=torch.float64)
    """
    if schedule == "linear":
        return Tabulated(masses(sampler), name=sampler.name)
    t = (torch.arange(_GRID_CELLS, dtype=torch.float64) + 0.5) / _GRID_CELLS
    density = masses(sampler) / masses(Uniform())
    return Tabulated(density[masked_count(t, torch.tensor(size), schedule) - 1], name=sampler.name)


@dataclass(frozen=True)
class FixedCount(Masker):
    """Masks k = ceil(t P) tokens: those with the k smallest uniforms.

    Under a density p of t the probability of k is the mass pi_k of its cell ((k-1)/P, k/P], and the row loss is
    ``c_k / (P pi_k) sum CE_i``: unbiased for any p. Mirrored uniforms give the tokens with the k largest instead;
    views of a partition give k tokens from different places of the same order.

    With ``counts`` ``cosine`` the objective is MMaDA's for images, ``E_k[1/k sum_M CE]`` with k = round(P sin(pi t/2))
    under uniform t. The cells of t have unequal widths pi_k^uniform, and under a density p of t the row loss is
    ``pi_k^uniform / pi_k`` times as large: the same objective for any p. With an ``InWindow`` the count has the law
    that independent masks give it under the objective's window or bell, which its cells of t have as their widths.

    >>> FixedCount().weighs_by(Tabulated([3.0, 1.0]), size=1).density  # the one count is certain
    tensor([1.], dtype=torch.float64)
    """

    counts: Counts = "linear"
    counted = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        size = given.size
        k = masked_count(given.t, size, self.counts)
        rank = given.views.ranks(given.uniforms, given.rows.maskable)
        mask = (rank < k[:, None, None]) & given.rows.maskable[:, None]
        weight = self._weight(given, k, size)
        c_k = coefficients_of(k, size, given.objective) if self.counts != "cosine" else 1.0 / k.double()
        if given.objective.has_places:  # 1 / P stands for the probability of k elsewhere
            c_k = c_k / (size * count_mass(Uniform(), k, size, self.counts))
        return mask, mask * (c_k * weight)[:, None, None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """``sampler`` made flat on each count's cell: the weight of a fixed count is 1 / (P pi_k), not 1 / p(t)."""
        if not sampler.unbiased:
            return sampler
        return flat_on_counts(lambda p: count_masses(p, size, self.counts), sampler, size, self.counts)

    def _weight(self, given: MaskInput, k: Tensor, size: Tensor) -> Tensor:
        """``1 / (P pi_k)``, or for cells of unequal width ``pi_k^uniform / pi_k``; E[weight] = 1."""
        if not given.sampler.unbiased:
            return given.sampler.weight(given.t)
        if self.counts == "linear":
            return 1.0 / (size * count_mass(given.sampler, k, size))
        uniform = count_mass(Uniform(), k, size, self.counts)
        return uniform / count_mass(given.sampler, k, size, self.counts)
