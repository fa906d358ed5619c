"""How the mean gradients of rows go on between the cells of t: straight, or in the steps of their counts.

With counts a row's mean gradient is a staircase in t, which strata and lattices meet at its steps: a straight line in
its place overrates what they leave. The values of the steps are taken to be linear in t from cell to cell.

Legend: a rows, b cells, U points of a fine grid of u, S sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.gradient.counts import counts_in_cells, places_of_counts
from stabledllm.gradient.profile import GradientProfile
from stabledllm.noise.schedule import masked_count
from stabledllm.ppots.shared_noise import linear

_MOST = 64
"""Tokens of the longest rows whose steps are told apart: of longer ones they are small beside the cells."""


class Curves:
    """The curves of the rows of a profile between their values in its cells, one for each size of a row.

    >>> from stabledllm.gradient.example import example_profile
    >>> curves = Curves(example_profile(), stepped=True)
    >>> curves(torch.tensor([0.5])).shape == (1, len(curves.sizes) * curves.cells)
    True
    """

    def __init__(self, profile: GradientProfile, *, stepped: bool):
        size = torch.where(profile.size <= _MOST, profile.size, 0) if stepped else torch.zeros_like(profile.size)
        self.sizes, self.group = size.unique(return_inverse=True)
        """The sizes that are told apart, 0 for all others, and the place of each row's size among them, (S,), (a,)."""
        self.cells = len(profile.width)
        self._profile = profile

    def __call__(self, t: Tensor) -> Tensor:
        """The weights of the values in the cells in the curves at t, (U, S b), size by size."""
        return torch.cat([self._of_size(t, size) for size in self.sizes.tolist()], dim=1)

    def _of_size(self, t: Tensor, size: int) -> Tensor:
        edges, objective = self._profile.edges, self._profile.objective
        if not size:
            return linear(t, (edges[1:] + edges[:-1]) / 2)
        every, places = torch.arange(1, size + 1), places_of_counts(size, objective)
        width = edges.diff()
        knots = places @ counts_in_cells(every, size, objective, edges) / width
        # Cells on the same step are measurements of one value.
        knots, same = knots.round(decimals=9).unique(return_inverse=True)
        share = width / torch.zeros_like(knots).index_add_(0, same, width)[same]
        at = places[masked_count(t, torch.tensor(size), objective.counts) - 1]
        weights = linear(at, knots) if len(knots) > 1 else torch.ones(len(at), 1, dtype=torch.float64)
        return weights[:, same] * share
