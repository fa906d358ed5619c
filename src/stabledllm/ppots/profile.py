"""The probe: losses on a grid of rates, and what they say about g(t), v(t) and rho(t).

Legend: a rows, b rates, c masks per cell, K views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.measure import LossMeter
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS, p_mask
from stabledllm.noise.streams import Key, Stream

_PROBE_STEP = 0x9B0BE
"""Step number of the probe's draws: far from any training step, so that no draw is used twice."""


@dataclass(frozen=True)
class Curve:
    """A quantity at every rate, with its jackknife standard error over rows; each of shape (b,)."""

    value: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class Profile:
    """Plain losses (unit importance weight) of chosen rows at midpoint rates. Nothing is clamped."""

    t: Tensor
    """Midpoint of each cell of [0, 1], shape (b,)."""
    width: Tensor
    """Width of each cell; they add up to 1, so that ``width @ f(t)`` is the integral of f; shape (b,)."""
    view_losses: Tensor
    """Float64, shape (a, b, c, K); 0 for unused views."""
    used: Tensor
    """Which views are used, bool, shape (a, b, K): by the rate and, with ``complement``, the row's tokens."""
    cost: Tensor
    """Forwards that a row pays at each rate, shape (b,)."""
    rows: Tensor
    """Index of each probed row in the data, shape (a,)."""

    @property
    def edges(self) -> Tensor:
        """Edges of the cells, shape (b + 1,)."""
        return torch.cat((torch.zeros(1, dtype=torch.float64), self.width.cumsum(0)))

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
        return Profile(self.t, self.width, self.view_losses[keep], self.used[keep], self.cost, self.rows[keep])

    def scaled(self, factor: Tensor) -> Profile:
        """The same profile with all losses times ``factor``, shape (a, b)."""
        losses = self.view_losses * factor[..., None, None]
        return Profile(self.t, self.width, losses, self.used, self.cost, self.rows)

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
        """Unbiased Var_{x0} g(x0, t), shape (b,); may be slightly negative."""
        return self.row_mean().var(0) - self.row_noise().mean(0) / self.view_losses.shape[2]


def rate_edges(rates: int, eps: float = EPS) -> Tensor:
    """Edges of ``rates`` equal cells of [0, 1], the lowest split where p_mask doubles.

    The variance grows like 1 / p_mask towards t = 0, where a single midpoint would miss half of it.
    """
    equal = torch.arange(rates + 1, dtype=torch.float64) / rates
    octaves = int(torch.tensor((p_mask(equal[1], eps) / max(eps, 1e-3)).item()).log2())
    splits = [(float(p_mask(equal[1], eps)) / 2.0**k - eps) / (1 - eps) for k in range(octaves, 0, -1)]
    return torch.cat((equal[:1], torch.tensor([x for x in splits if x > 0], dtype=torch.float64), equal[1:]))


def probe(meter: LossMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int) -> Profile:
    """Measure the losses of ``rows`` distinct rows in each cell of :func:`rate_edges` under ``masks`` masks.

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
    edges = rate_edges(rates, meter.objective.eps)
    t = (edges[1:] + edges[:-1]) / 2
    row_index = chosen.repeat_interleave(len(t) * masks)
    row_t = t.repeat_interleave(masks).repeat(a)
    losses, used = meter.view_losses(row_index, row_t, method, key)
    _refuse_not_finite(losses, row_index, row_t)
    grid = (a, len(t), masks, losses.shape[-1])
    return Profile(t, edges.diff(), losses.view(grid), used.view(grid)[:, :, 0], method.views.cost(t), chosen)


def _refuse_not_finite(losses: Tensor, row: Tensor, t: Tensor) -> None:
    bad = (~losses.isfinite().all(-1)).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(
            f"probe: expected finite losses, found {len(bad)} that are not; "
            f"the first is of row {int(row[bad[0]])} at t={float(t[bad[0]]):.4g}."
        )


def _mean_curve(rows: Tensor) -> Curve:
    # For a mean over rows the jackknife is the usual standard error.
    return Curve(rows.mean(0), rows.std(0) / len(rows) ** 0.5)


def _ratio_curve(numerator: Tensor, denominator: Tensor) -> Curve:
    n = len(numerator)
    top, bottom = numerator.sum(0), denominator.sum(0)
    left_out = (top - numerator) / (bottom - denominator)
    spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (n - 1) / n
    return Curve(top / bottom, spread.sqrt())
