"""Products of two means over rows, from pairs of different rows, by piece of t.

Legend: a rows, b cells, s pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.ppots.moments import SecondMoments

_CUTS = (4, 2, 1)
_LEAST = 4
"""Rows whose values a piece holds at least: with one left out there are still pairs."""


@dataclass(frozen=True)
class Pieces:
    """The probe's cells, cut finer where rows have rates of their own in them.

    The rates of a cell's rows are a lattice, so that two rows are further apart than independent ones: a product of
    two rows' values is too small for the square of their mean over the cell by its variance within the cell over
    a - 1. Among the values of one piece what varies is many times less.
    """

    middle: Tensor
    """Shape (s,)."""
    width: Tensor
    """Shape (s,)."""
    of: Tensor
    """Piece of each row's value in each cell, int64, shape (a, b)."""

    @classmethod
    def cut(cls, moments: SecondMoments) -> Pieces:
        """As fine as leaves some rows in every piece; the cells themselves on a grid."""
        share, cells = (moments.rates - moments.edges[:-1]) / moments.width, len(moments.width)
        for cuts in _CUTS if moments.rate is not None else (1,):
            of = (share * cuts).long().clamp(0, cuts - 1) + torch.arange(cells) * cuts
            if cuts == 1 or int(of.flatten().bincount(minlength=cells * cuts).min()) >= _LEAST:
                break
        width = (moments.width / cuts).repeat_interleave(cuts)
        start = moments.edges[:-1].repeat_interleave(cuts) + width * torch.arange(cuts).repeat(cells)
        return cls(start + width / 2, width, of)

    def quadratic(self, values: Tensor, form: Tensor) -> Callable[[Tensor], float]:
        """Takes the rows kept, gives ``g' form g`` for the mean g over rows of ``values``, (a, b), piece by piece."""
        there = torch.zeros(len(values), len(self.middle), dtype=torch.float64).scatter_(1, self.of, 1.0)
        value = torch.zeros_like(there).scatter_(1, self.of, values)

        def from_pairs(keep: Tensor) -> float:
            product, count = (torch.outer(x.sum(0), x.sum(0)) - x.T @ x for x in (value[keep], there[keep]))
            return float((form * product / count).sum())

        return from_pairs

    def mean_square(self, values: Tensor) -> Callable[[Tensor], float]:
        """Takes the rows kept, gives the square of ``E ∫ g dt``, g the mean over rows of ``values``."""
        return self.quadratic(values, torch.outer(self.width, self.width))
