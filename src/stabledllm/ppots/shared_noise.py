"""How much of the noise that all rows share a source of u leaves in a step.

Legend: b rates, U points of a fine grid of u, n rows of a step, k strata.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.sources import OverU, Source

_FINE = 64
"""Grid points of u per stratum, or per row of a lattice."""
_AT_ONCE = 2**10
"""Strata, or rows of a lattice, worked out at a time: bounds the memory."""


def shared_noise(g: Tensor, t: Tensor, sampler: TSampler, source: Source, n: int) -> tuple[float, float]:
    """``(left, removed)``: of Var_u h(u), h(u) = g(t) w(t) at t = icdf(u), what the source leaves of n Var(step mean).

    Args:
        g: mean loss over rows at rates t, both of shape (b,); linear between them.
    """
    left, removed = shared_forms(t, sampler, source, n)
    return float(g @ left @ g), float(g @ removed @ g)


def shared_forms(
    t: Tensor, sampler: TSampler, source: Source, n: int, *, weighted: bool = False
) -> tuple[Tensor, Tensor]:
    """The same as quadratic forms in g, two symmetric matrices of shape (b, b).

    Args:
        weighted: the forms are in h at rates t, linear between them, in the place of g.
    """
    k = source.count(n)
    square, folded, means = 0.0, 0.0, []
    for first in range(0, k, _AT_ONCE):
        count = min(_AT_ONCE, k - first)
        at = sampler.icdf((torch.arange(count * _FINE, dtype=torch.float64) + 0.5 + first * _FINE) / (k * _FINE))
        h = _hats(at, t) if weighted else _hats(at, t) * sampler.weight(at)[:, None]
        h = h.view(count, _FINE, -1)
        square = square + h.flatten(0, 1).T @ h.flatten(0, 1) / (k * _FINE)
        folded = folded + h.sum(0) / k
        means.append(h.mean(1))
    mean = folded.mean(0)
    return source.left_of(OverU(square - torch.outer(mean, mean), torch.cat(means) - mean, folded - mean), n)


def _hats(x: Tensor, xs: Tensor) -> Tensor:
    """Weights of the values at xs in the curve at x that is linear between them and flat beyond; shape (U, b)."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    share = ((x - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    place, out = torch.arange(len(x)), torch.zeros(len(x), len(xs), dtype=torch.float64)
    out[place, right - 1] = 1 - share
    out[place, right] = share
    return out
