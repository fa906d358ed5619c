"""Exactly k of the P maskable tokens: the noise of the count removed for free.

Source: arXiv:2409.02908 and LLaDA's likelihood evaluation; with eps > 0 the weights below make it
the Bernoulli objective exactly (docs/mathematics.md#the-oracle).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler, Uniform
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.schedule import Counts, largest_ratio, masked_count

_FINE = 4096


@lru_cache(maxsize=2048)
def count_coefficients(size: int, eps: float, power: float) -> Tensor:
    """c_k for k = 1..P, so that ``E_t[p^(a-1) sum_M CE] = sum_k c_k mean_{|M|=k} sum_M CE``.

    With p uniform on [eps, 1]: ``c_k = C(P,k) B(k+a, P-k+1) (1 - I_eps(k+a, P-k+1)) / (1 - eps)`` for any real
    a >= 0; for the ELBO (a = 0) that is omega_k / k.

    Returns:
        float64, shape (P,).
    """
    k = torch.arange(1, size + 1, dtype=torch.float64)
    total = float(size + power)
    beta = (
        torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64))
        + torch.lgamma(k + power)
        - torch.lgamma(k + 1)
        - torch.lgamma(torch.tensor(total + 1, dtype=torch.float64))
    ).exp()
    if eps == 0.0:
        return beta
    above = _above_eps_binomial(size, eps, int(power)) if power == int(power) else _above_eps(size, eps, power)
    return beta * above / (1.0 - eps)


def _above_eps(size: int, eps: float, power: float) -> Tensor:
    """1 - I_eps(k + a, P - k + 1) for k = 1..P: the mass of a beta distribution above eps; shape (P,)."""
    from scipy import special  # here, as importing the package loads torch only

    k = torch.arange(1, size + 1, dtype=torch.float64).numpy()
    return torch.from_numpy(special.betainc(size - k + 1, k + power, 1.0 - eps))


def _above_eps_binomial(size: int, eps: float, power: int) -> Tensor:
    """The same for an integer a, where it is a binomial distribution function."""
    total = float(size + power)
    hits = torch.arange(int(total) + 1, dtype=torch.float64)
    log_pmf = (
        torch.lgamma(torch.tensor(total + 1, dtype=torch.float64))
        - torch.lgamma(hits + 1)
        - torch.lgamma(total - hits + 1)
        + hits * torch.log(torch.tensor(eps, dtype=torch.float64))
        + (total - hits) * torch.log1p(torch.tensor(-eps, dtype=torch.float64))
    )
    at_most = torch.cumsum(log_pmf.exp(), 0).clamp(max=1.0)
    return at_most[power : power + size]


def coefficients_of(counts: Tensor, size: Tensor, given: MaskInput) -> Tensor:
    """:func:`count_coefficients` of each row's counts.

    Args:
        counts: int64, shape (B,) or (B, K), each in [1, P]. size: P of each row, shape (B,).
    """
    c = torch.empty(counts.shape, dtype=torch.float64, device=counts.device)
    for rows_size in size.unique().tolist():
        here = size == rows_size
        c[here] = count_coefficients(rows_size, given.eps, given.power).to(c.device)[counts[here] - 1]
    return c


def count_mass(sampler: TSampler, counts: Tensor, size: Tensor, schedule: Counts = "linear") -> Tensor:
    """pi_k: probability that the masked count of the schedule is the given one; float64, shape of ``counts``."""
    return sampler.cdf(largest_ratio(counts, size, schedule)) - sampler.cdf(largest_ratio(counts - 1, size, schedule))


def count_masses(sampler: TSampler, size: int, schedule: Counts = "linear") -> Tensor:
    """pi_k for k = 1..P, float64, shape (P,)."""
    return count_mass(sampler, torch.arange(1, size + 1), torch.tensor(size), schedule)


@dataclass(frozen=True)
class FixedCount:
    """k = ceil(t P) tokens, those with the k smallest uniforms.

    Under a density p of t the count has the mass pi_k of its cell ((k-1)/P, k/P], and the row loss is
    ``c_k / (P pi_k) sum CE_i``: unbiased for any p. Mirrored uniforms give the k largest instead, partition views
    the k from another place of the same order on.

    With ``counts`` ``cosine`` the objective is MMaDA's for images, ``E_k[1/k sum_M CE]`` with k = round(P sin(pi t/2))
    under uniform t. Its cells of t are of unequal width pi_k^uniform, and under a density p of t the row loss is
    ``pi_k^uniform / pi_k`` times as much: the same objective for any p.
    """

    counts: Counts = "linear"
    independent = False
    counted = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        size = given.maskable.sum(1)
        k = masked_count(given.t, size, self.counts)
        rank = given.views.ranks(given.uniforms, given.maskable)
        mask = (rank < k[:, None, None]) & given.maskable[:, None]
        weight = self._weight(given, k, size)
        c_k = coefficients_of(k, size, given) if self.counts == "linear" else 1.0 / k.double()
        return mask, mask * (c_k * weight)[:, None, None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """``sampler`` made flat on the cells of the counts: a fixed count pays 1 / (P pi_k), not 1 / p(t).

        A cosine's cells do not fit a grid of equal cells: there it is right but for the grid's cells on their edges.
        """
        if not sampler.unbiased:
            return sampler
        if self.counts == "linear":
            return Tabulated(count_masses(sampler, size), name=sampler.name)
        t = (torch.arange(_FINE, dtype=torch.float64) + 0.5) / _FINE
        density = count_masses(sampler, size, self.counts) / count_masses(Uniform(), size, self.counts)
        return Tabulated(density[masked_count(t, torch.tensor(size), self.counts) - 1], name=sampler.name)

    def _weight(self, given: MaskInput, k: Tensor, size: Tensor) -> Tensor:
        """``1 / (P pi_k)``, or the mass of the count under uniform t over that under the sampler; E[weight] = 1."""
        if not given.sampler.unbiased:
            return given.sampler.weight(given.t)
        if self.counts == "linear":
            return 1.0 / (size * count_mass(given.sampler, k, size))
        uniform = count_mass(Uniform(), k, size, self.counts)
        return uniform / count_mass(given.sampler, k, size, self.counts)
