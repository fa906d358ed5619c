"""Integrals of a density's weights over the probe's cells of t."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.t_samplers import TSampler

CELLS = 4096
"""Equal cells of [0, 1] in which fitted densities are tabulated."""


def cell_kernels(sampler: TSampler, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Means of w(t)² p(t) and of w(t) p(t) over each cell of t; for unbiased w = 1/p those of 1/p and of 1.

    Exact for piecewise constant densities (both sets of edges are refined into one).

    Args:
        edges: cell edges in [0, 1], shape (b + 1,).

    Returns:
        Two tensors of shape (b,), float64.
    """
    fine = torch.cat((torch.arange(CELLS + 1, dtype=torch.float64) / CELLS, edges)).unique()
    width, middle = fine.diff(), (fine[1:] + fine[:-1]) / 2
    cell = (torch.searchsorted(edges, middle) - 1).clamp(0, len(edges) - 2)
    density, weight = sampler.log_prob(middle).exp(), sampler.weight(middle)
    zero = torch.zeros(len(edges) - 1, dtype=torch.float64)
    return tuple(zero.index_add(0, cell, width * k * density) / edges.diff() for k in (weight**2, weight))
