"""The probe: losses over cells of t, and what they say about g(t), v(t) and rho(t).

Legend: a rows, b cells, c masks per row and cell, K views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS, p_mask
from stabledllm.noise.sources import LowDiscrepancy
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.moments import Cells, Curve, LossMoments
from stabledllm.stats import jackknife

_PROBE_STEP = 0x9B0BE
"""Step number of the probe's draws: far from any training step, so that no draw is used twice."""
_RATE_STEP = _PROBE_STEP << 8
"""First of the steps whose lattices place the rates of a stratified probe, one step per cell."""
Design = Literal["grid", "stratified"]


@dataclass(frozen=True, kw_only=True)
class Profile(Cells):
    """Plain losses (unit importance weight) of chosen rows in cells of t. Nothing is clamped.

    On a grid a cell's values are those at its midpoint. Stratified, each row has a rate of its own in each cell,
    uniform in it, at which all its masks are drawn: the means over rows are then unbiased for the *cell averages*
    of g, v and the second moment, whatever their shape in the cell.
    """

    signal = "loss"
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
    def forward_passes(self) -> int:
        """Forwards the probe took."""
        return int(self.used.sum()) * self.view_losses.shape[2]

    @property
    def values(self) -> Tensor:
        """Losses with the used views averaged, shape (a, b, c)."""
        return self.view_losses.sum(-1) / self.used.sum(-1)[..., None]

    @cached_property
    def moments(self) -> LossMoments:
        """What p is fitted to."""
        losses = self.values
        return LossMoments(
            edges=self.edges,
            moment=(losses**2).mean(-1),
            cost=self.cost,
            rate=self.rate,
            mean=losses.mean(-1),
            noise=losses.var(-1),
            masks=losses.shape[2],
            share=self.share,
        )

    def view_noise(self) -> Tensor:
        """Unbiased Var_M of a single view's loss by row, shape (a, b)."""
        return (self.view_losses.var(2) * self.used).sum(-1) / self.used.sum(-1)

    def view_covariance(self) -> Tensor:
        """Unbiased covariance of two views within (x0, t) by row, shape (a, b); NaN where one view is used."""
        centred = self.view_losses - self.view_losses.mean(2, keepdim=True)
        both = (centred[..., 0] * centred[..., 1]).sum(-1) / (centred.shape[2] - 1)
        return torch.where(self.used[..., :2].all(-1), both, torch.nan)

    def rho(self) -> Curve | None:
        """Correlation of two views' losses within (x0, t): a ratio of means over rows; None for one view."""
        if self.view_losses.shape[-1] < 2:
            return None
        return _ratio_curve(self.view_covariance(), self.view_noise())

    def curves(self) -> dict[str, Curve | None]:
        """Over t: E g in nats; E Var_M of one view (v) and of the views' mean in nats²; and rho."""
        return {
            "g": Curve.mean(self.moments.mean),
            "v": Curve.mean(self.view_noise()),
            "v_views": Curve.mean(self.moments.noise),
            "rho": self.rho(),
        }


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
    return Profile(
        edges=edges,
        view_losses=losses.view(grid),
        used=used,
        cost=used.double().sum(-1).mean(0),
        rows=chosen,
        rate=rate,
        share=share,
    )


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


def _ratio_curve(numerator: Tensor, denominator: Tensor) -> Curve:
    top, bottom = numerator.sum(0), denominator.sum(0)
    left_out = (top - numerator) / (bottom - denominator)
    return Curve(top / bottom, jackknife.variance(left_out).sqrt())
