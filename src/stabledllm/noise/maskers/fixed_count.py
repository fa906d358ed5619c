"""Exactly k of the P maskable tokens: the noise of the count removed for free.

Source: arXiv:2409.02908 and LLaDA's likelihood evaluation; with eps > 0 the weights below make it
the Bernoulli objective exactly (DESIGN section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stabledllm.noise.maskers.base import MaskInput


@lru_cache(maxsize=8192)
def count_coefficients(size: int, eps: float, power: int) -> Tensor:
    """c_k for k = 1..P, so that ``E_t[p^(a-1) sum_M CE] = sum_k c_k mean_{|M|=k} sum_M CE``.

    With p uniform on [eps, 1]: ``c_k = C(P,k) B(k+a, P-k+1) (1 - I_eps(k+a, P-k+1)) / (1 - eps)``; for the
    ELBO (a = 0) that is omega_k / k. 1 - I is a binomial distribution function, as a is an integer.

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
    hits = torch.arange(int(total) + 1, dtype=torch.float64)
    log_pmf = (
        torch.lgamma(torch.tensor(total + 1, dtype=torch.float64))
        - torch.lgamma(hits + 1)
        - torch.lgamma(total - hits + 1)
        + hits * torch.log(torch.tensor(eps, dtype=torch.float64))
        + (total - hits) * torch.log1p(torch.tensor(-eps, dtype=torch.float64))
    )
    at_most = torch.cumsum(log_pmf.exp(), 0).clamp(max=1.0)
    return beta * at_most[power : power + size] / (1.0 - eps)


@dataclass(frozen=True)
class FixedCount:
    """k = ceil(t P) tokens, those with the k smallest uniforms.

    Under a density p of t the count has the mass pi_k of its cell ((k-1)/P, k/P], and the row loss is
    ``c_k / (P pi_k) sum CE_i``: unbiased for any p. Mirrored uniforms give the k largest instead.
    """

    name = "fixedcount"
    unbiased = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        size = given.maskable.sum(1)
        k = (given.t * size).ceil().long().clamp(min=1).minimum(size)
        keyed = given.uniforms.masked_fill(~given.maskable[:, None], 2.0)
        order = keyed.argsort(dim=-1, stable=True)
        places = torch.arange(keyed.shape[-1], device=keyed.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, places)
        mask = (rank < k[:, None, None]) & given.maskable[:, None]
        weight = self._weight(given, k, size)
        c_k = torch.empty_like(given.t, dtype=torch.float64)
        for rows_size in size.unique().tolist():
            here = size == rows_size
            c_k[here] = count_coefficients(rows_size, given.eps, given.power).to(given.t.device)[k[here] - 1]
        return mask, mask * (c_k * weight)[:, None, None], weight

    @staticmethod
    def _weight(given: MaskInput, k: Tensor, size: Tensor) -> Tensor:
        if not given.sampler.unbiased:
            return given.sampler.weight(given.t)
        cell = given.sampler.cdf(k.double() / size) - given.sampler.cdf((k - 1).double() / size)
        return 1.0 / (size * cell)
