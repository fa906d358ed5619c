"""Pareto-k, a measure of how heavy the upper tail of importance-weighted losses is."""

from __future__ import annotations

import math

import numpy as np


def pareto_k(values: np.ndarray) -> float:
    """The shape k of a generalised Pareto distribution fitted to the upper tail.

    Above 0.5 the variance may not exist; above 0.7 an average cannot be trusted. NaN with fewer than 5 tail values.

    Source: Zhang & Stephens (2009), with the tail length and the weak prior of Vehtari et al. (arXiv:1507.02646): the
    tail is the largest min(n / 5, 3 sqrt n) values, and k is shrunk towards 1/2 as by 10 pseudo-observations.

    >>> u = (np.arange(10_000) + 0.5) / 10_000
    >>> round(pareto_k(u**-0.8), 1)
    0.8
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    size = math.ceil(min(0.2 * len(values), 3 * math.sqrt(len(values))))
    if size < 5 or len(values) <= size:
        return math.nan
    tail = values[-size:] - values[-size - 1]
    if tail[-1] <= 0:
        return math.nan
    tail = np.maximum(tail, tail[-1] * 1e-12)
    candidates = 30 + int(math.sqrt(size))
    quarter = tail[max(0, int(size / 4 + 0.5) - 1)]
    spread = 1 - np.sqrt(candidates / (np.arange(1, candidates + 1) - 0.5))
    b = spread / (3 * quarter) + 1 / tail[-1]
    k = np.log1p(-b[:, None] * tail).mean(1)
    log_likelihood = size * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    b_mean = float(b @ weights / weights.sum())
    shape = float(np.log1p(-b_mean * tail).mean())
    return (size * shape + 10 * 0.5) / (size + 10)
