"""What p(t) is fitted to: mean squares by row and cell of t, whether of losses or of gradients.

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
"""Gauss-Legendre nodes per cell: exact for polynomials of degree 7."""
_LEAST_FOR_TREND = 4
"""Rows from which a straight line is taken out of g within a cell before its spread over rows is measured."""


@dataclass(frozen=True)
class Curve:
    """A quantity at every rate, with its jackknife standard error over rows; each of shape (b,)."""

    value: Tensor
    stderr: Tensor

    @classmethod
    def mean(cls, rows: Tensor) -> Curve:
        """The mean over rows, (a, b); its jackknife is the usual standard error, NaN for one row, as a fold may be."""
        if len(rows) < 2:
            return cls(rows.mean(0), torch.full_like(rows[0], math.nan))
        return cls(rows.mean(0), rows.std(0) / len(rows) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of [0, 1] in which something was measured."""

    edges: Tensor
    """Shape (b + 1,)."""

    @property
    def t(self) -> Tensor:
        """Midpoint of each cell, shape (b,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def width(self) -> Tensor:
        """Widths, which add up to 1: ``width @ f(t)`` is the integral of f; shape (b,)."""
        return self.edges.diff()


@dataclass(frozen=True, kw_only=True)
class SecondMoments(Cells):
    """Mean squares of a row's loss, or of its gradient's norm, over masks, at unit importance weight."""

    moment: Tensor
    """E_M of the square, shape (a, b)."""
    cost: Tensor
    """Forwards that a row pays in each cell, shape (b,)."""
    rate: Tensor | None = None
    """Where in its cell each row was measured, shape (a, b); None at the midpoints."""

    @property
    def rows(self) -> int:
        return len(self.moment)

    @property
    def rates(self) -> Tensor:
        """The rate at which each row was measured in each cell, shape (a, b)."""
        return self.t.expand(self.rows, -1) if self.rate is None else self.rate

    def curve(self) -> Curve:
        """Mean over rows, E_{x0} E_M of the square."""
        return Curve.mean(self.moment)

    def select(self, keep: Tensor) -> SecondMoments:
        """The same of fewer rows (indices or a bool mask over a)."""
        rate = None if self.rate is None else self.rate[keep]
        return replace(self, moment=self.moment[keep], rate=rate)

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates (b, Q) and weights (Q,) whose weighted mean of a function of t is what the cell's values stand for."""
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
        """``w² p`` and ``w p`` by which a row's moments in a cell of t are multiplied, each of shape (a, b), float64.

        Stratified, at each row's own rate: their product with what was measured there is then unbiased for the integral
        over the cell, however both bend within it. A product of two averages over a cell is not. On a grid, where
        losses are known at midpoints only, the kernels' means over the cell.

        Args:
            weighs_by: where rows are not weighed by 1 / p(t) itself: fixed counts pay 1 / (P pi_k).
        """
        if self.rate is not None:
            density, weight = sampler.log_prob(self.rate).exp(), self.weights(sampler, weighs_by)
            return weight**2 * density, weight * density
        by_row = [weighs_by(sampler, row) if weighs_by else sampler for row in range(self.rows)]
        known = {id(by): cell_kernels(sampler, self.edges, by) for by in by_row}
        return tuple(torch.stack([known[id(by)][k] for by in by_row]) for k in (0, 1))

    def integrated(self, sampler: TSampler, rows: Tensor, weighs_by: WeighsBy | None = None) -> Tensor:
        """``∫ E_M[l²] w² p dt`` of some rows, the second moments of their weighted losses; shape of ``rows``."""
        return ((self.moment * self.kernels(sampler, weighs_by)[0]) @ self.width)[rows]


@dataclass(frozen=True, kw_only=True)
class LossMoments(SecondMoments):
    """Second moments of losses, split into mean and noise: what sources that share noise among rows are fitted by."""

    mean: Tensor
    """Cell means, unbiased for g(x0, t), shape (a, b)."""
    noise: Tensor
    """Unbiased Var_M of the view-averaged loss, shape (a, b)."""
    masks: int
    """Draws c behind each mean."""
    share: Tensor | None = None
    """What each row counts under the token mean, shape (a,); None where all count the same."""

    def select(self, keep: Tensor) -> LossMoments:
        share = None if self.share is None else self.share[keep]
        return replace(super().select(keep), mean=self.mean[keep], noise=self.noise[keep], share=share)

    def between_rows(self) -> Tensor:
        """Unbiased Var_{x0} g(x0, t), shape (b,); may be slightly negative.

        Where rows have rates of their own, g differs between them for that reason too: its straight line over the
        cell is taken out first, so that only the mean curve's bend within a cell is left in.
        """
        noise = self.noise.mean(0) / self.masks
        if self.rate is None or self.rows < _LEAST_FOR_TREND:
            return self.mean.var(0) - noise
        x, y = self.rate - self.rate.mean(0), self.mean - self.mean.mean(0)
        residual = y - (x * y).sum(0) / (x**2).sum(0) * x
        return (residual**2).sum(0) / (self.rows - 2) - noise
