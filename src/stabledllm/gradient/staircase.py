"""How the mean gradients of rows go on between the cells of t: straight, or in the steps of their counts.

With counts a row's mean gradient is a staircase in t, which strata and lattices meet at its steps; a straight line in
its place misjudges what they leave. The height of a step, apart from its weight, is taken to be linear in the middle of
the step from cell to cell, and flat beyond the outer cells.

Legend: a rows, b cells, U points of a fine grid of u, S sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.gradient.counts import counts_in_cells, places_of_counts
from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.row_moments import point_weight, weight_at
from stabledllm.noise.densities import TSampler
from stabledllm.noise.schedule import masked_count
from stabledllm.ppots.shared_noise import linear

_MOST = 64
"""Tokens of the longest rows whose steps are told apart, so that there are not too many sizes; longer ones have small
steps."""


class Curves:
    """The curves of weighted mean gradients through their values in a profile's cells, one for each size of a row.

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> curves = Curves(example_profile(), Uniform(), stepped=True)
    >>> curves(torch.tensor([0.5])).shape == (1, len(curves.sizes) * curves.cells)
    True
    """

    def __init__(self, profile: GradientProfile, sampler: TSampler, *, stepped: bool):
        size = torch.where(profile.size <= _MOST, profile.size, 0) if stepped else torch.zeros_like(profile.size)
        self.sizes, self.group = size.unique(return_inverse=True)
        """The sizes that are told apart, 0 for all others, and the place of each row's size among them, (S,), (a,)."""
        self.cells = len(profile.width)
        self._profile, self._sampler = profile, sampler

    def __call__(self, t: Tensor) -> Tensor:
        """The weights of the values in the cells in the curves at t, (U, S b), size by size."""
        return torch.cat([self._of_size(t, size) for size in self.sizes.tolist()], dim=1)

    def in_cells(self, i: int) -> Tensor:
        """Weights of row i's points in its values in the cells, which its curve weighs, (b, n)."""
        cell = self._profile.cell
        plain = torch.eye(self.cells, dtype=torch.float64)[:, cell] / cell.bincount()[cell]
        if self.sizes[self.group[i]]:
            return plain
        # Where the masker's weight is not 1 / p(t) itself, the points are scaled so that 1 / p(t) times them gives it.
        return plain * point_weight(self._sampler, self._profile, i) / self._sampler.weight(self._profile.t[i])

    def _of_size(self, t: Tensor, size: int) -> Tensor:
        edges, objective = self._profile.edges, self._profile.objective
        if not size:
            return linear(t, (edges[1:] + edges[:-1]) / 2) * self._sampler.weight(t)[:, None]
        every, places = torch.arange(1, size + 1), places_of_counts(size, objective)
        knots = places @ counts_in_cells(every, size, objective, edges) / edges.diff()
        # Cells on the same step are measurements of one value.
        knots, same = knots.round(decimals=9).unique(return_inverse=True)
        points = self._profile.cell.bincount().double()
        share = points / torch.zeros_like(knots).index_add_(0, same, points)[same]
        at = places[masked_count(t, torch.tensor(size), objective.counts) - 1]
        return linear(at, knots)[:, same] * share * weight_at(t, self._sampler, self._profile, size)[:, None]
