"""The second moments that p(t) is fitted to: mean squares of losses or of gradient norms, by row and cell of t.

Legend: a rows, b cells, c masks per row and cell, Q nodes of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.ppots.cells import WeighsBy, cell_kernels

_NODES = 4
"""Number of Gauss-Legendre nodes per cell, which are exact for polynomials of degree 7."""
_LEAST_FOR_TREND = 4
"""Least number of rows from which the straight line of g over a cell is subtracted before its spread is taken."""


@dataclass(frozen=True)
class Curve:
    """A quantity over the cells of t, with its jackknife standard error over rows; each of shape (b,).

    >>> Curve.mean(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).stderr
    tensor([1., 0.])
    """

    value: Tensor
    stderr: Tensor

    @classmethod
    def mean(cls, rows: Tensor) -> Curve:
        """The mean of values (a, b) over rows; its error is the usual standard error, NaN for a single row."""
        if len(rows) < 2:
            return cls(rows.mean(0), torch.full_like(rows[0], math.nan))
        return cls(rows.mean(0), rows.std(0) / len(rows) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A division of [0, 1] into cells of t.

    >>> Cells(edges=torch.tensor([0.0, 0.5, 1.0])).t
    tensor([0.2500, 0.7500])
    """

    edges: Tensor
    """Edges of the cells, shape (b + 1,)."""

    @property
    def t(self) -> Tensor:
        """Midpoint of each cell, shape (b,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def width(self) -> Tensor:
        """Width of each cell, shape (b,); they add up to 1, so that ``width @ f(t)`` is the integral of f."""
        return self.edges.diff()


@dataclass(frozen=True, kw_only=True)
class SecondMoments(Cells):
    """Mean squares over masks of each row's loss, or of its gradient's norm, by cell, at unit importance weight.

    >>> edges, cost = torch.tensor([0.0, 0.5, 1.0]).double(), torch.ones(2).double()
    >>> moments = SecondMoments(edges=edges, cost=cost, moment=torch.tensor([[1.0, 3.0], [3.0, 5.0]]).double())
    >>> moments.curve().value, moments.select(torch.tensor([0])).rows
    (tensor([2., 4.], dtype=torch.float64), 1)
    """

    moment: Tensor
    """E_M of the square, shape (a, b)."""
    cost: Tensor
    """Forwards that a row pays in each cell, shape (b,)."""
    rate: Tensor | None = None
    """Rate of each row in each cell, shape (a, b); None where all are the midpoints."""
    together: int = 1
    """Rows that follow each other and belong together, such as the two responses of a pair: one independent item."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.moment)

    @property
    def rates(self) -> Tensor:
        """The rate at which each row was measured in each cell, shape (a, b)."""
        return self.t.expand(self.rows, -1) if self.rate is None else self.rate

    def curve(self) -> Curve:
        """E_{x0} E_M of the square, the mean over rows."""
        return Curve.mean(self.moment)

    def select(self, keep: Tensor) -> SecondMoments:
        """The moments of some of the rows (indices, or a bool mask over a)."""
        rate = None if self.rate is None else self.rate[keep]
        return replace(self, moment=self.moment[keep], rate=rate)

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates (b, Q) and weights (Q,): a cell's moment stands for the weighted mean of the square at its rates."""
        if self.rate is None:
            return self.t.numpy()[:, None], np.ones(1)
        x, w = np.polynomial.legendre.leggauss(_NODES)
        return self.t.numpy()[:, None] + self.width.numpy()[:, None] * x / 2, w / 2

    def weights(self, sampler: TSampler, weighs_by: WeighsBy | None = None) -> Tensor:
        """Importance weight of each row at its rate in each cell, shape (a, b)."""
        if weighs_by is None:
            return sampler.weight(self.rates)
        return torch.stack([weighs_by(sampler, row).weight(rate) for row, rate in enumerate(self.rates)])

    def kernels(self, sampler: TSampler, weighs_by: WeighsBy | None = None) -> tuple[Tensor, Tensor]:
        """The factors ``w² p`` and ``w p`` of each row's moments in each cell of t, each of shape (a, b), float64.

        Where rows have rates of their own, the factors are those at that rate: their product with what was measured
        there is unbiased for the integral over the cell, whatever the shape of both within it, as a product of two
        averages over the cell is not. On a grid, where losses are known at midpoints only, they are means over the
        cell.

        Args:
            weighs_by: needed where a row's weight is not 1 / p(t) itself; with fixed counts it is 1 / (P pi_k).
        """
        if self.rate is not None:
            density, weight = sampler.log_prob(self.rate).exp(), self.weights(sampler, weighs_by)
            return weight**2 * density, weight * density
        by_row = [weighs_by(sampler, row) if weighs_by else sampler for row in range(self.rows)]
        kernels = {id(by): cell_kernels(sampler, self.edges, by) for by in by_row}  # rows of equal length share one
        return tuple(torch.stack([kernels[id(by)][k] for by in by_row]) for k in (0, 1))

    def integrated(self, sampler: TSampler, rows: Tensor, weighs_by: WeighsBy | None = None) -> Tensor:
        """``∫ E_M[l²] w² p dt`` of some rows, the second moment of each row's weighted loss; shape of ``rows``."""
        return ((self.moment * self.kernels(sampler, weighs_by)[0]) @ self.width)[rows]


@dataclass(frozen=True, kw_only=True)
class LossMoments(SecondMoments):
    """Second moments of losses with their parts, mean and noise: sources other than iid need these parts for the fit.

    >>> g = torch.tensor([[1.0], [2.0], [3.0]])
    >>> losses = LossMoments(edges=torch.tensor([0.0, 1.0]), moment=g**2 + 0.5, cost=torch.ones(1), mean=g,
    ...                      noise=torch.full((3, 1), 0.5), masks=2)
    >>> losses.between_rows()  # Var(1, 2, 3) less the noise of means of two
    tensor([0.7500])
    """

    mean: Tensor
    """Mean loss over masks, unbiased for g(x0, t), shape (a, b)."""
    noise: Tensor
    """Unbiased Var_M of the view-averaged loss, shape (a, b)."""
    masks: int
    """Number of masks c behind each mean."""
    share: Tensor | None = None
    """Share of each row in the token mean, shape (a,); None where all rows count the same."""

    def select(self, keep: Tensor) -> LossMoments:
        share = None if self.share is None else self.share[keep]
        return replace(super().select(keep), mean=self.mean[keep], noise=self.noise[keep], share=share)

    def between_rows(self) -> Tensor:
        """Unbiased Var_{x0} g(x0, t), shape (b,); may be slightly negative.

        Where rows have rates of their own, g differs between them for that reason too: the straight line through the
        values of a cell is subtracted first, so that of the mean curve only its bend within the cell remains.
        """
        noise = self.noise.mean(0) / self.masks
        if self.rate is None or self.rows < _LEAST_FOR_TREND:
            return self.mean.var(0) - noise
        x, y = self.rate - self.rate.mean(0), self.mean - self.mean.mean(0)
        residual = y - (x * y).sum(0) / (x**2).sum(0) * x
        return (residual**2).sum(0) / (self.rows - 2) - noise
