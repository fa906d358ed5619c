"""The weights of masked counts that make an exact count estimate the objective of independent masks."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=2048)
def count_coefficients(size: int, eps: float, power: float, most: float = 1.0) -> Tensor:
    """The c_k, k = 1..P, for which ``E_t[p^(a-1) sum_M CE] = sum_k c_k mean_{|M|=k} sum_M CE``.

    With p uniform on [eps, 1]: ``c_k = C(P,k) B(k+a, P-k+1) (1 - I_eps(k+a, P-k+1)) / (1 - eps)`` for any real
    a >= 0; for the ELBO (a = 0) that is omega_k / k. With p uniform on [eps, most], ``I_most`` stands for the 1s; at
    a = 1 the c_k are then the probabilities of the counts k.

    Returns:
        float64, shape (P,).

    >>> count_coefficients(4, eps=0.0, power=0.0)  # 1 / k
    tensor([1.0000, 0.5000, 0.3333, 0.2500], dtype=torch.float64)
    """
    k = torch.arange(1, size + 1, dtype=torch.float64)
    beta = (log_gamma(size + 1) + log_gamma(k + power) - log_gamma(k + 1) - log_gamma(size + power + 1)).exp()
    if eps == 0.0 and most == 1.0:
        return beta
    mass = _above(size, eps, power) - (_above(size, most, power) if most < 1.0 else 0.0)
    return beta * mass / (most - eps)


def log_gamma(x: float | Tensor) -> Tensor:
    """The logarithm of the gamma function, ``log (x - 1)!`` for whole x; float64, shape of ``x``.

    >>> log_gamma(4).exp().round(decimals=9)
    tensor(6., dtype=torch.float64)
    """
    return torch.lgamma(torch.as_tensor(x, dtype=torch.float64))


def _above(size: int, p: float, power: float) -> Tensor:
    """The mass ``1 - I_p(k + a, P - k + 1)`` of a beta distribution above p, for k = 1..P; shape (P,)."""
    return _above_binomial(size, p, int(power)) if power == int(power) and p > 0.0 else _above_beta(size, p, power)


def _above_beta(size: int, p: float, power: float) -> Tensor:
    """The same for any real a."""
    from scipy import special  # here, as importing the package loads torch only

    k = torch.arange(1, size + 1, dtype=torch.float64).numpy()
    return torch.from_numpy(special.betainc(size - k + 1, k + power, 1.0 - p))


def _above_binomial(size: int, p: float, power: int) -> Tensor:
    """The same for an integer a, where it is a binomial distribution function."""
    total, p_ = size + power, torch.tensor(p, dtype=torch.float64)
    hits = torch.arange(total + 1, dtype=torch.float64)
    ways = log_gamma(total + 1) - log_gamma(hits + 1) - log_gamma(total - hits + 1)
    log_pmf = ways + hits * torch.log(p_) + (total - hits) * torch.log1p(-p_)
    at_most = torch.cumsum(log_pmf.exp(), 0).clamp(max=1.0)
    return at_most[power : power + size]
