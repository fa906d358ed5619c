"""How much of the noise that all rows share a source of u leaves in a step.

Legend: U points of a fine grid of u, n rows of a step, k strata.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.sources import Source
from stabledllm.noise.t_samplers import TSampler

_FINE = 64
"""Grid points of u per stratum, or per row of a lattice."""


def shared_noise(g: Tensor, t: Tensor, sampler: TSampler, source: Source, n: int) -> tuple[float, float]:
    """``(left, removed)``: of Var_u h(u), h(u) = g(t) w(t) at t = icdf(u), what the source leaves of n Var(step mean).

    iid leaves all of it. Strata leave what varies within them, and the n mod k extra points as a simple random
    sample of strata; a lattice leaves n times the variance of its mean over its offset.

    Args:
        g: mean loss over rows at rates t, both of shape (b,); linear between them.
    """
    k = source.count(n) if source.name == "strats" else n
    u = (torch.arange(k * _FINE, dtype=torch.float64) + 0.5) / (k * _FINE)
    at = sampler.icdf(u)
    h = _interpolate(at, t, g) * sampler.weight(at)
    total = float(h.var(correction=0))
    if source.name == "iid":
        return total, 0.0
    if source.name == "lowdisc":
        left = n * float(h.view(n, _FINE).mean(0).var(correction=0))
        return left, total - left
    means, extra = h.view(k, _FINE).mean(1), n % k
    among_extra = extra * (1 - extra / k) * float(means.var()) / n if extra else 0.0
    removed = float(means.var(correction=0)) - among_extra
    return total - removed, removed


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Linear between the points, flat beyond the outermost."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    share = ((x - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return ys[right - 1] * (1 - share) + ys[right] * share
