"""Squares of means over rows without bias, from pairs of different rows, by piece of t.

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
"""Least number of rows with a value in a piece: with one of them left out there are still pairs."""


@dataclass(frozen=True)
class Pieces:
    """The probe's cells of t, cut finer where each row has a rate of its own in a cell.

    The rates of a cell's rows are a lattice, so that two rows are further apart than independent ones, and the mean
    product of two rows' values is below the square of their mean over the cell, by the variance within the cell over
    a - 1. Within one piece the values vary many times less.

    >>> moments = SecondMoments(edges=torch.tensor([0.0, 0.5, 1.0]), moment=torch.ones(4, 2), cost=torch.ones(2))
    >>> Pieces.cut(moments).middle  # on a grid the pieces are the cells
    tensor([0.2500, 0.7500])
    """

    middle: Tensor
    """Middle of each piece, shape (s,)."""
    width: Tensor
    """Width of each piece, shape (s,)."""
    of: Tensor
    """Piece of each row's value in each cell, int64, shape (a, b)."""

    @classmethod
    def cut(cls, moments: SecondMoments) -> Pieces:
        """The finest pieces that still hold some rows each; on a grid the cells themselves."""
        share, cells = (moments.rates - moments.edges[:-1]) / moments.width, len(moments.width)
        for cuts in _CUTS if moments.rate is not None else (1,):
            of = (share * cuts).long().clamp(0, cuts - 1) + torch.arange(cells) * cuts
            if cuts == 1 or int(of.flatten().bincount(minlength=cells * cuts).min()) >= _LEAST:
                break
        width = (moments.width / cuts).repeat_interleave(cuts)
        start = moments.edges[:-1].repeat_interleave(cuts) + width * torch.arange(cuts).repeat(cells)
        return cls(start + width / 2, width, of)

    def quadratic(self, values: Tensor, form: Tensor) -> Callable[[Tensor], float]:
        """A function of the rows to use: ``g' form g``, g the mean over those rows of ``values``, (a, b), by piece."""
        has = torch.zeros(len(values), len(self.middle), dtype=torch.float64).scatter_(1, self.of, 1.0)
        value = torch.zeros_like(has).scatter_(1, self.of, values)

        def from_pairs(keep: Tensor) -> float:
            product, count = (torch.outer(x.sum(0), x.sum(0)) - x.T @ x for x in (value[keep], has[keep]))
            return float((form * product / count).sum())

        return from_pairs

    def mean_square(self, values: Tensor) -> Callable[[Tensor], float]:
        """A function of the rows to use: the square of ``∫ g dt``, g the mean over those rows of ``values``."""
        return self.quadratic(values, torch.outer(self.width, self.width))
