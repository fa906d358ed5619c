"""What a density's weights make of losses in the probe's cells of t."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Method

CELLS = 4096
"""Equal cells of [0, 1] in which fitted densities are tabulated."""

WeighsBy = Callable[[TSampler, int], TSampler]
"""Takes a density and a probed row (0 to a - 1), gives the density whose reciprocal weighs that row."""


def weights_of(method: Method, rows: Sequence[TokenRow]) -> WeighsBy:
    """How a method weighs the probed rows, which depends on their maskable tokens."""
    sizes = [row.maskable_count(syrm=method.syrm) for row in rows]
    return lambda density, row: method.masker.weighs_by(density, sizes[row])


def cell_kernels(sampler: TSampler, edges: Tensor, weighs_by: TSampler | None = None) -> tuple[Tensor, Tensor]:
    """Means of w(t)² p(t) and of w(t) p(t) over each cell of t; for unbiased w = 1/p those of 1/p and of 1.

    Exact for piecewise constant densities (their edges and the cells' are refined into one).

    Args:
        edges: cell edges in [0, 1], shape (b + 1,).
        weighs_by: density whose reciprocal is the weight, where it is not ``sampler`` itself.

    Returns:
        Two tensors of shape (b,), float64.
    """
    by = weighs_by or sampler
    fine = torch.cat((_steps(CELLS), edges, *(_steps(len(d)) for d in (sampler, by) if isinstance(d, Tabulated))))
    fine = fine.unique()
    width, middle = fine.diff(), (fine[1:] + fine[:-1]) / 2
    cell = (torch.searchsorted(edges, middle) - 1).clamp(0, len(edges) - 2)
    density, weight = sampler.log_prob(middle).exp(), by.weight(middle)
    zero = torch.zeros(len(edges) - 1, dtype=torch.float64)
    return tuple(zero.index_add(0, cell, width * k * density) / edges.diff() for k in (weight**2, weight))


def _steps(cells: int) -> Tensor:
    return torch.arange(cells + 1, dtype=torch.float64) / cells
