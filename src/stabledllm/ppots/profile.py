"""The probe: losses by cell of t, with estimates of g(t), v(t) and rho(t) from them.

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
"""Step number of the probe's draws, far from those of training, so that no random number is used twice."""
_RATE_STEP = _PROBE_STEP << 8
"""Step number of the lattice that gives the first cell's rates in a stratified probe; each cell has the next one."""
LEAST_SEEN = 10
"""Least number of draws of a cell with a masked token for an error of their spread: among fewer, one decides."""
Design = Literal["grid", "stratified"]


@dataclass(frozen=True, kw_only=True)
class Profile(Cells):
    """Losses of the probed rows by cell of t, at unit importance weight; nothing is clamped.

    In a grid design a cell's values are those at its midpoint. In a stratified one each row has a rate of its own in
    each cell, uniform in it, at which all its masks are drawn: the means over rows are then unbiased for the *cell
    averages* of g, v and the second moment, whatever their shape in the cell.

    >>> profile = Profile(edges=torch.tensor([0.0, 1.0]), view_losses=torch.tensor([[[[1.0, 3.0], [3.0, 5.0]]]]),
    ...                   used=torch.ones(1, 1, 2, dtype=torch.bool), cost=torch.full((1,), 2.0), rows=torch.arange(1))
    >>> profile.forward_passes, profile.values, profile.moments.noise
    (4, tensor([[[2., 4.]]]), tensor([[2.]]))
    """

    signal = "loss"
    view_losses: Tensor
    """Float64, shape (a, b, c, K); 0 for unused views."""
    used: Tensor
    """Which views are used, bool, shape (a, b, K): it depends on the rate and, for ``complement``, the row's tokens."""
    cost: Tensor
    """Forwards that a row paid in each cell, shape (b,)."""
    rows: Tensor
    """Index of each probed row in the data, shape (a,)."""
    rate: Tensor | None = None
    """Rates of a stratified probe, shape (a, b); None on a grid, where all are ``t``."""
    share: Tensor | None = None
    """Share of each row in the token mean, already a factor of its losses, shape (a,); None where all count the same.
    The best p follows from these losses alone: the part of the variance that m takes off does not depend on p."""

    @property
    def forward_passes(self) -> int:
        """Number of forwards that the probe took."""
        return int(self.used.sum()) * self.view_losses.shape[2]

    @property
    def values(self) -> Tensor:
        """Losses, the mean over the used views, shape (a, b, c)."""
        return self.view_losses.sum(-1) / self.used.sum(-1)[..., None]

    @cached_property
    def moments(self) -> LossMoments:
        """The second moments that p is fitted to, with their parts."""
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
        covariance, noise = self.view_covariance(), self.view_noise()
        top, bottom = covariance.sum(0), noise.sum(0)
        left_out = (top - covariance) / (bottom - noise)
        return Curve(top / bottom, jackknife.variance(left_out).sqrt())

    def curves(self) -> dict[str, Curve | None]:
        """Curves over t: g in nats, v of one view and of the views' mean (``v_views``) in nats², and rho."""
        return {
            "g": Curve.mean(self.moments.mean),
            "v": Curve.mean(self.view_noise()),
            "v_views": Curve.mean(self.moments.noise),
            "rho": self.rho(),
        }


def rate_edges(rates: int, eps: float = EPS, switches: Sequence[float] = ()) -> Tensor:
    """Edges of ``rates`` equal cells of [0, 1], the lowest split where p_mask doubles, others at ``switches``.

    The variance grows like 1 / p_mask towards t = 0, where a single midpoint would miss half of it: the lowest cell is
    split down to p_mask = 2 eps. (For eps = 0 there would be no last cell, and they end at 1e-3: losses with a finite
    variance there, from counts and from weights that vanish at 0, are flat below.) The number of views changes at a
    switch, and is the same all over a cell.

    >>> rate_edges(2, eps=0.25, switches=(0.6,))  # p_mask = 0.25 + 0.75 t is 0.625 at the lowest cell's end
    tensor([0.0000, 0.0833, 0.5000, 0.6000, 1.0000], dtype=torch.float64)
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

    The design ``grid``, that of the paper, measures at the cells' midpoints. ``stratified`` measures each row at a
    uniform rate of its own in each cell; the rates of a cell's rows are a lattice, so that many rows with few masks
    cover all of [0, 1].

    Rows and masks depend on the seed alone, so that the probe is reproducible and the same on every rank. The density
    part of the method is not used: losses are taken at unit weight.

    Raises:
        UserError: fewer than 2 rows, rates or masks.
        NotFinite: a loss that is NaN or infinite.

    >>> from stabledllm.noise.objective import Objective
    >>> class Linear:  # a meter of three rows, whose loss is t
    ...     rows, objective = range(3), Objective()
    ...     def view_losses(self, row, t, method, key):
    ...         return t[:, None], torch.ones(len(t), 1, dtype=torch.bool)
    >>> probe(Linear(), Method(), rows=2, rates=2, masks=2, seed=0).values[0, -1]
    tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    for name, value in (("rows", min(rows, len(meter.rows))), ("rates", rates), ("masks", masks)):
        if value < 2:
            raise UserError(f"probe: expected at least 2 {name}, found {value}.")
    key = Key(seed, _PROBE_STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a = len(chosen)
    edges = rate_edges(rates, meter.objective.floor, method.views.switches)
    t = (edges[1:] + edges[:-1]) / 2
    rate = _own_rates(seed, edges, a) if design == "stratified" else None
    row_index = chosen.repeat_interleave(len(t) * masks)
    row_t = (t.expand(a, -1) if rate is None else rate).flatten().repeat_interleave(masks)
    losses, used = meter.view_losses(row_index, row_t, method, key)
    grid = (a, len(t), masks, losses.shape[-1])
    used = used.view(grid)[:, :, 0]
    share = meter.shares(method)[chosen] if meter.objective.normalization != "row" else None
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
    """The rate of each row in each cell, shape (a, b): uniform in the cell, and over the rows of a cell a lattice."""
    u = [LowDiscrepancy().uniforms(Key(seed, _RATE_STEP + j), rows, edges.device) for j in range(len(edges) - 1)]
    t = edges[:-1] + edges.diff() * torch.stack(u, dim=1)
    # Rounding must not push a rate over its cell's edge, where another number of views may be used.
    return torch.minimum(t, torch.nextafter(edges[1:], torch.zeros_like(edges[1:])))
