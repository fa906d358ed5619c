"""The probe: losses over cells of t, and what they say about g(t), v(t) and rho(t).

Legend: a rows, b cells, c masks per row and cell, K views, Q nodes of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS, p_mask
from stabledllm.noise.sources import LowDiscrepancy
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.cells import WeighsBy, row_kernels

_PROBE_STEP = 0x9B0BE
"""Step number of the probe's draws: far from any training step, so that no draw is used twice."""
_RATE_STEP = _PROBE_STEP << 8
"""First of the steps whose lattices place the rates of a stratified probe, one step per cell."""
_NODES = 4
"""Gauss-Legendre nodes per cell: exact for polynomials of degree 7."""
_LEAST_FOR_TREND = 4
"""Rows from which a straight line is taken out of g within a cell before its spread over rows is measured."""

Design = Literal["grid", "stratified"]


@dataclass(frozen=True)
class Curve:
    """A quantity at every rate, with its jackknife standard error over rows; each of shape (b,)."""

    value: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class Profile:
    """Plain losses (unit importance weight) of chosen rows in cells of t. Nothing is clamped.

    On a grid a cell's values are those at its midpoint. Stratified, each row has a rate of its own in each cell,
    uniform in it, at which all its masks are drawn: the means over rows are then unbiased for the *cell averages*
    of g, v and the second moment, whatever their shape in the cell.
    """

    t: Tensor
    """Midpoint of each cell of [0, 1], shape (b,)."""
    width: Tensor
    """Width of each cell; they add up to 1, so that ``width @ f(t)`` is the integral of f; shape (b,)."""
    view_losses: Tensor
    """Float64, shape (a, b, c, K); 0 for unused views."""
    used: Tensor
    """Which views are used, bool, shape (a, b, K): by the rate and, with ``complement``, the row's tokens."""
    cost: Tensor
    """Forwards that a row pays in each cell, as they were counted, shape (b,)."""
    rows: Tensor
    """Index of each probed row in the data, shape (a,)."""
    rate: Tensor | None = None
    """Rates of a stratified probe, shape (a, b); None on a grid, where all are ``t``."""
    share: Tensor | None = None
    """What each row counts under the token mean, with which its losses come, shape (a,); None where all count the
    same. The best p follows from these losses alone: what m takes off does not depend on p."""

    @property
    def edges(self) -> Tensor:
        """Edges of the cells, shape (b + 1,)."""
        return torch.cat((torch.zeros(1, dtype=torch.float64), self.width.cumsum(0)))

    @property
    def rates(self) -> Tensor:
        """The rate at which each row's losses in each cell were measured, shape (a, b)."""
        return self.t.expand(len(self.rows), -1) if self.rate is None else self.rate

    @property
    def forward_passes(self) -> int:
        """Forwards the probe took."""
        return int(self.used.sum()) * self.view_losses.shape[2]

    @property
    def row_losses(self) -> Tensor:
        """Losses with the used views averaged, shape (a, b, c)."""
        return self.view_losses.sum(-1) / self.used.sum(-1)[..., None]

    def select(self, keep: Tensor) -> Profile:
        """The same profile of fewer rows (indices or a bool mask over a)."""
        rate = None if self.rate is None else self.rate[keep]
        share = None if self.share is None else self.share[keep]
        kept = {"view_losses": self.view_losses[keep], "used": self.used[keep], "rows": self.rows[keep]}
        return replace(self, **kept, rate=rate, share=share)

    def integrated(self, sampler: TSampler, rows: Tensor, weighs_by: WeighsBy | None = None) -> Tensor:
        """``∫ E_M[l²] w² p dt`` of some rows, the second moments of their weighted losses; shape of ``rows``."""
        return ((self.row_second_moment() * row_kernels(self, sampler, weighs_by)[0]) @ self.width)[rows]

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates (b, Q) and weights (Q,) whose weighted mean of a function of t is what the cell's values stand for."""
        if self.rate is None:
            return self.t.numpy()[:, None], np.ones(1)
        x, w = np.polynomial.legendre.leggauss(_NODES)
        return self.t.numpy()[:, None] + self.width.numpy()[:, None] * x / 2, w / 2

    # Per-row values: everything below is a mean over rows of one of these, or a variance of one.

    def row_mean(self) -> Tensor:
        """Cell means, unbiased for g(x0, t), shape (a, b)."""
        return self.row_losses.mean(-1)

    def row_second_moment(self) -> Tensor:
        """E_M of the squared view-averaged loss, shape (a, b)."""
        return (self.row_losses**2).mean(-1)

    def row_noise(self) -> Tensor:
        """Unbiased Var_M of the view-averaged loss, shape (a, b)."""
        return self.row_losses.var(-1)

    def row_view_noise(self) -> Tensor:
        """Unbiased Var_M of a single view's loss, shape (a, b)."""
        return self._over_views(self.view_losses.var(2))

    def row_view_covariance(self) -> Tensor:
        """Unbiased covariance of two views within (x0, t), shape (a, b); NaN where one view is used."""
        centred = self.view_losses - self.view_losses.mean(2, keepdim=True)
        both = (centred[..., 0] * centred[..., 1]).sum(-1) / (centred.shape[2] - 1)
        return torch.where(self.used[..., :2].all(-1), both, torch.nan)

    def draws_that_hide(self) -> Tensor:
        """Draws of each cell in which something was masked, shape (b,)."""
        return (self.view_losses != 0).any(-1).sum((0, 2))

    def _over_views(self, values: Tensor) -> Tensor:
        return (values * self.used).sum(-1) / self.used.sum(-1)

    # Curves over t.

    def g(self) -> Curve:
        """E_{x0} g(x0, t) in nats."""
        return _mean_curve(self.row_mean())

    def second_moment(self) -> Curve:
        """E_{x0}[g² + v], v that of the view-averaged loss, in nats²."""
        return _mean_curve(self.row_second_moment())

    def v(self) -> Curve:
        """E_{x0} Var_M of a single view, in nats²."""
        return _mean_curve(self.row_view_noise())

    def v_views(self) -> Curve:
        """E_{x0} Var_M of the view-averaged loss, in nats²."""
        return _mean_curve(self.row_noise())

    def rho(self) -> Curve | None:
        """Correlation of two views' losses within (x0, t): a ratio of means over rows; None for one view."""
        if self.view_losses.shape[-1] < 2:
            return None
        return _ratio_curve(self.row_view_covariance(), self.row_view_noise())

    def between_rows(self) -> Tensor:
        """Unbiased Var_{x0} g(x0, t), shape (b,); may be slightly negative.

        Where rows have rates of their own, g differs between them for that reason too: its straight line over the
        cell is taken out first, so that only the mean curve's bend within a cell is left in.
        """
        mean, noise = self.row_mean(), self.row_noise().mean(0) / self.view_losses.shape[2]
        if self.rate is None or len(mean) < _LEAST_FOR_TREND:
            return mean.var(0) - noise
        x, y = self.rate - self.rate.mean(0), mean - mean.mean(0)
        residual = y - (x * y).sum(0) / (x**2).sum(0) * x
        return (residual**2).sum(0) / (len(mean) - 2) - noise


def rate_edges(rates: int, eps: float = EPS, switches: Sequence[float] = ()) -> Tensor:
    """Edges of ``rates`` equal cells of [0, 1], the lowest split where p_mask doubles, others at ``switches``.

    The variance grows like 1 / p_mask towards t = 0, where a single midpoint would miss half of it: cells are split
    down to p_mask = 2 eps. (At eps = 0, where no cell is the last, they end at 1e-3: what has a finite variance there,
    counts and weights that vanish at 0, is flat below.) At a switch the number of views changes: within a cell it is
    one.
    """
    equal = torch.arange(rates + 1, dtype=torch.float64) / rates
    octaves = int(math.log2(float(p_mask(equal[1], eps)) / (eps or 1e-3)))
    splits = [(float(p_mask(equal[1], eps)) / 2.0**k - eps) / (1 - eps) for k in range(octaves, 0, -1)]
    more = torch.tensor([x for x in splits if x > 0] + list(switches), dtype=torch.float64)
    return torch.cat((equal, more)).unique()


def probe(
    meter: LossMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int, design: Design = "grid"
) -> Profile:
    """Measure the losses of ``rows`` distinct rows in each cell of :func:`rate_edges` under ``masks`` masks.

    ``grid``: at the cells' midpoints, the paper's design. ``stratified``: each row at a uniform rate of its own in each
    cell, the rows of a cell on a lattice, so that many rows with few masks cover all of [0, 1].

    Rows are chosen and masks drawn by the seed alone, so the probe is reproducible and the same on every
    rank. The density part of the method is not used: losses are taken at unit weight.

    Raises:
        UserError: fewer than 2 rows, rates or masks, or a loss that is not finite.
    """
    for name, value in (("rows", min(rows, len(meter.rows))), ("rates", rates), ("masks", masks)):
        if value < 2:
            raise UserError(f"probe: expected at least 2 {name}, found {value}.")
    key = Key(seed, _PROBE_STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a = len(chosen)
    edges = rate_edges(rates, meter.objective.eps, method.views.switches)
    t = (edges[1:] + edges[:-1]) / 2
    rate = _own_rates(seed, edges, a) if design == "stratified" else None
    row_index = chosen.repeat_interleave(len(t) * masks)
    row_t = (t.expand(a, -1) if rate is None else rate).flatten().repeat_interleave(masks)
    losses, used = meter.view_losses(row_index, row_t, method, key)
    _refuse_not_finite(losses, row_index, row_t)
    grid = (a, len(t), masks, losses.shape[-1])
    used = used.view(grid)[:, :, 0]
    share = meter.shares(method)[chosen] if meter.objective.normalization == "token" else None
    return Profile(t, edges.diff(), losses.view(grid), used, used.double().sum(-1).mean(0), chosen, rate, share)


def _own_rates(seed: int, edges: Tensor, rows: int) -> Tensor:
    """A rate of each row in each cell, shape (a, b): uniform in the cell, a lattice over its rows."""
    u = [LowDiscrepancy().uniforms(Key(seed, _RATE_STEP + j), rows, edges.device) for j in range(len(edges) - 1)]
    t = edges[:-1] + edges.diff() * torch.stack(u, dim=1)
    # Rounding must not push a rate over its cell's edge, where another number of views may be used.
    return torch.minimum(t, torch.nextafter(edges[1:], torch.zeros_like(edges[1:])))


def _refuse_not_finite(losses: Tensor, row: Tensor, t: Tensor) -> None:
    bad = (~losses.isfinite().all(-1)).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(
            f"probe: expected finite losses, found {len(bad)} that are not; "
            f"the first is of row {int(row[bad[0]])} at t={float(t[bad[0]]):.4g}."
        )


def _mean_curve(rows: Tensor) -> Curve:
    # For a mean over rows the jackknife is the usual standard error; of one row, as a fold may be, there is none.
    if len(rows) < 2:
        return Curve(rows.mean(0), torch.full_like(rows[0], math.nan))
    return Curve(rows.mean(0), rows.std(0) / len(rows) ** 0.5)


def _ratio_curve(numerator: Tensor, denominator: Tensor) -> Curve:
    n = len(numerator)
    top, bottom = numerator.sum(0), denominator.sum(0)
    left_out = (top - numerator) / (bottom - denominator)
    spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (n - 1) / n
    return Curve(top / bottom, spread.sqrt())
