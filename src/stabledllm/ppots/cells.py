"""Factors by which a density multiplies the moments of losses in cells of t."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Method

CELLS = 4096
"""Number of equal cells of [0, 1] in which fitted densities are tabulated."""

WeighsBy = Callable[[TSampler, int], TSampler]
"""A function of a density and a probed row (0 to a - 1): the density whose reciprocal is that row's weight."""


def weights_of(method: Method, rows: Sequence[TokenRow]) -> WeighsBy:
    """The function that gives a method's weights of the probed rows, which depend on their maskable tokens.

    >>> density, row = Tabulated([0.5, 1.5]), TokenRow([1, 2, 3], 1)
    >>> weights_of(Method(), [row])(density, 0) is density  # Standard weighs every row by 1 / p(t)
    True
    """
    sizes = [row.maskable_count(syrm=method.syrm) for row in rows]
    return lambda density, row: method.masker.weighs_by(density, sizes[row])


def cell_kernels(sampler: TSampler, edges: Tensor, weighs_by: TSampler | None = None) -> tuple[Tensor, Tensor]:
    """Means of w(t)² p(t) and of w(t) p(t) over each cell of t; for the unbiased w = 1/p these are means of 1/p and 1.

    Exact for piecewise constant densities: the mean is taken over a grid that has their edges and those of the cells.

    Args:
        edges: cell edges in [0, 1], shape (b + 1,).
        weighs_by: the density whose reciprocal is the weight; ``sampler`` itself by default.

    Returns:
        Two tensors of shape (b,), float64.

    >>> cell_kernels(Tabulated([0.5, 1.5]), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))[0]
    tensor([2.0000, 0.6667], dtype=torch.float64)
    """
    by = weighs_by or sampler
    tabulated = [len(density) for density in (sampler, by) if isinstance(density, Tabulated)]
    equal = (torch.arange(cells + 1, dtype=torch.float64) / cells for cells in (CELLS, *tabulated))
    fine = torch.cat((edges, *equal)).unique()
    width, middle = fine.diff(), (fine[1:] + fine[:-1]) / 2
    cell = (torch.searchsorted(edges, middle) - 1).clamp(0, len(edges) - 2)
    density, weight = sampler.log_prob(middle).exp(), by.weight(middle)
    zero = torch.zeros(len(edges) - 1, dtype=torch.float64)
    return tuple(zero.index_add(0, cell, width * factor * density) / edges.diff() for factor in (weight**2, weight))
