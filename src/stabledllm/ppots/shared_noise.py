"""The noise that all rows of a step share through u: how much of it a source leaves, and how much it removes.

Legend: b rates, U points of a fine grid of u, n rows of a step, k strata.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.sources import OverU, Source

Curve = Callable[[Tensor], Tensor]
"""Takes rates (U,) and gives the weights (U, b) of b values in a curve there."""
_FINE = 64
"""Grid points of u per stratum, or per row of a lattice."""
_AT_ONCE = 2**8
"""Number of strata, or rows of a lattice, computed at once; bounds the memory."""


def shared_noise(g: Tensor, t: Tensor, sampler: TSampler, source: Source, n: int) -> float:
    """The part of n Var(step mean) that the source leaves of Var_u h(u), where h(u) = g(t) w(t) at t = icdf(u).

    Args:
        g: mean loss over rows at rates t, both of shape (b,); linear between them.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.sources import IID
    >>> g = torch.tensor([0.0, 1.0]).double()
    >>> round(shared_noise(g, g, Uniform(), IID(), 8), 3)  # Var(u) = 1/12
    0.083
    """
    return float(g @ shared_forms(t, sampler, source, n)[0] @ g)


def shared_forms(
    t: Tensor | Curve, sampler: TSampler, source: Source, n: int, *, weighted: bool = False
) -> tuple[Tensor, Tensor]:
    """The parts of Var_u h that the source leaves and removes, as quadratic forms in g: symmetric, of shape (b, b).

    Args:
        t: the rates between which g is linear, or another curve.
        weighted: whether the curve is of h itself, so that the forms are in values of h instead of g.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.sources import IID
    >>> shared_forms(torch.tensor([0.0, 1.0]).double(), Uniform(), IID(), 8)[1]  # iid u removes nothing
    tensor([[0., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    k, curve = source.count(n), t if callable(t) else partial(linear, knots=t)
    square, folded, means = 0.0, 0.0, []
    for first in range(0, k, _AT_ONCE):
        count = min(_AT_ONCE, k - first)
        rate = sampler.icdf((torch.arange(count * _FINE, dtype=torch.float64) + 0.5 + first * _FINE) / (k * _FINE))
        h = curve(rate) if weighted else curve(rate) * sampler.weight(rate)[:, None]
        h = h.view(count, _FINE, -1)
        square = square + h.flatten(0, 1).T @ h.flatten(0, 1) / (k * _FINE)
        folded = folded + h.sum(0) / k
        means.append(h.mean(1))
    mean = folded.mean(0)
    return source.left_of(OverU(square - torch.outer(mean, mean), torch.cat(means) - mean, folded - mean), n)


def linear(x: Tensor, knots: Tensor) -> Tensor:
    """Weights of the values at the knots in the curve through them at x, linear between and flat beyond; shape (U, b).

    >>> linear(torch.tensor([0.0, 0.5]).double(), torch.tensor([0.25, 0.75]).double())
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    if len(knots) == 1:
        return torch.ones(len(x), 1, dtype=torch.float64)
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    share = ((x - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    place, out = torch.arange(len(x)), torch.zeros(len(x), len(knots), dtype=torch.float64)
    out[place, right - 1], out[place, right] = 1 - share, share
    return out
