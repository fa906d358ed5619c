"""What a density's weights make of losses in the probe's cells of t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler

if TYPE_CHECKING:  # profile itself integrates by the kernels
    from stabledllm.data.rows import TokenRow
    from stabledllm.noise.methods import Method
    from stabledllm.ppots.profile import Profile

CELLS = 4096
"""Equal cells of [0, 1] in which fitted densities are tabulated."""

WeighsBy = Callable[[TSampler, int], TSampler]
"""Takes a density and a row of the profile (0 to a - 1), gives the density whose reciprocal weighs that row."""


def weights_of(method: Method, rows: Sequence[TokenRow]) -> WeighsBy:
    """How a method weighs the probed rows, which depends on their maskable tokens."""
    sizes = [row.maskable_count(syrm=method.syrm) for row in rows]
    return lambda density, row: method.masker.weighs_by(density, sizes[row])


def row_kernels(profile: Profile, sampler: TSampler, weighs_by: WeighsBy | None = None) -> tuple[Tensor, Tensor]:
    """``w² p`` and ``w p`` by which a row's moments in a cell of t are multiplied, each of shape (a, b), float64.

    Stratified, at each row's own rate: their product with what was measured there is then unbiased for the integral
    over the cell, however both bend within it. A product of two averages over a cell is not. On a grid, where losses
    are known at midpoints only, the kernels' means over the cell.

    Args:
        weighs_by: where rows are not weighed by 1 / p(t) itself: fixed counts pay 1 / (P pi_k).
    """
    own = [weighs_by(sampler, row) if weighs_by else sampler for row in range(len(profile.rows))]
    if profile.rate is None:
        known = {id(by): cell_kernels(sampler, profile.edges, by) for by in own}
        square, plain = (torch.stack([known[id(by)][k] for by in own]) for k in (0, 1))
    else:
        density = sampler.log_prob(profile.rate).exp()
        weight = row_weights(profile, sampler, weighs_by)
        square, plain = weight**2 * density, weight * density
    return square, plain


def row_weights(profile: Profile, sampler: TSampler, weighs_by: WeighsBy | None = None) -> Tensor:
    """Importance weight of each row at its rate in each cell, shape (a, b)."""
    if weighs_by is None:
        return sampler.weight(profile.rates)
    return torch.stack([weighs_by(sampler, row).weight(rate) for row, rate in enumerate(profile.rates)])


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
