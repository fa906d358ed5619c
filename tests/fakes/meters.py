"""Meters whose loss law is known exactly, and what A, B, C and the variances of their losses are.

Legend: a rows, b rates, c masks, K views, n evaluations, P tokens, R rows of the data.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor

from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import p_mask
from stabledllm.noise.streams import Key, Stream
from tests.fakes.laws import Law, nodes


@lru_cache
def _rows_and_spread(n_rows: int) -> tuple[tuple[SimpleNamespace, ...], Tensor]:
    """Rows of a few lengths, and a number of each: of mean 0 and, where there are several, of variance exactly 1."""
    kinds = [SimpleNamespace(response_length=10 + i) for i in range(7)]
    z = torch.special.ndtri((torch.arange(n_rows, dtype=torch.float64) + 0.5) / n_rows)
    return tuple(itertools.islice(itertools.cycle(kinds), n_rows)), z / z.std() if n_rows > 1 else torch.zeros_like(z)


class FakeMeter:
    """As LossMeter: losses are a pure function of (row, place, key); x has exactly the law's mean and variance."""

    def __init__(self, law: Law, n_rows: int = 20_000):
        self.law, self.forwards, self.objective = law, 0, Objective()
        kinds, spread = _rows_and_spread(n_rows)
        self.rows, self.x = list(kinds), 1 + law.tau2**0.5 * spread

    def view_losses(self, row, t, method, key: Key, sampler=None):
        count, index = method.views.count, torch.arange(len(row))
        u = torch.stack([key.row_uniforms(Stream.MASK, index, view=k) for k in range(count)], 1)
        z = -torch.log1p(-u) - 1 if self.law.heavy else torch.special.ndtri(u)
        if count == 2:
            z[:, 1] = self.law.rho * z[:, 0] + (1 - self.law.rho**2) ** 0.5 * z[:, 1]
        used = method.views.active(t)
        losses = (self.x[row] * self.law.h(t))[:, None] + self.law.sd(t)[:, None] * z
        self.forwards += int(used.sum())
        return losses * (sampler or Uniform()).weight(t)[:, None] * used, used

    def losses(self, row, t, method, key, sampler=None):
        views, used = self.view_losses(row, t, method, key, sampler)
        return views.sum(1) / used.sum(1)


class TokenMeter:
    """Rows of P tokens whose cross-entropies do not depend on the masks: every variance is known in closed form.

    Masks are the method's own. Within a row cross-entropies vary by a factor of 3, over rows by one of 2.

    Args:
        sizes: P of the rows, which repeat in this order.
    """

    def __init__(self, sizes: tuple[int, ...], n_rows: int = 2000, eps: float = 1e-3, normalization: str = "row"):
        self.rows, self.forwards = range(n_rows), 0
        self.objective = Objective(eps=eps, normalization=normalization)
        generator = torch.Generator().manual_seed(sum(sizes))
        self.size = torch.tensor(sizes).repeat(-(-n_rows // len(sizes)))[:n_rows]
        self.maskable = torch.arange(max(sizes)) < self.size[:, None]
        row, token = (torch.rand(n_rows, k, generator=generator, dtype=torch.float64) for k in (1, max(sizes)))
        self.nll = (0.7 + 0.7 * row) * (0.5 + token) * self.maskable
        self.share = self.objective.row_share(self.size)

    def sizes(self, method) -> Tensor:
        return self.size

    def shares(self, method) -> Tensor:
        return self.share

    def view_losses(self, row, t, method, key, sampler=None):
        n = len(row)
        noise = Rows(torch.arange(n), n, self.maskable[row], torch.arange(self.maskable.shape[1]))
        draw = replace(method, objective=self.objective).draw_at(t, key, noise, sampler or Uniform())
        losses = (draw.coefficient * draw.mask * self.nll[row][:, None]).sum(-1) * self.share[row][:, None]
        self.forwards += int(draw.active.sum())
        return losses * draw.active, draw.active

    losses = FakeMeter.losses

    def pattern(self, one=lambda p: 1 / p - 1) -> float:
        """A, where ``m_i / p`` of a token has the variance ``one(p)``: ``E s^2 sum CE^2 / P^2`` times its integral."""
        eps = self.objective.eps
        x, w = nodes(math.log(eps), 0.0, 400)
        integral = float((one(x.exp()) * x.exp()) @ w) / (1 - eps)
        return float((self.share**2 * (self.nll**2).sum(1) / self.size**2).mean()) * integral

    @property
    def mean(self) -> float:
        return float((self.share * self.nll.sum(1) / self.size).mean())

    @property
    def data(self) -> float:
        """C: of the token mean too, where rows vary by ``s (l - m)``. B is 0."""
        return float((self.share * (self.nll.sum(1) / self.size - self.mean)).var())


class TableMeter:
    """P <= 4 tokens; the cross-entropy of each depends on the row and on the whole mask. Masks are the method's own."""

    def __init__(self, tokens: int = 3, n_rows: int = 4000, seed: int = 0, eps: float = 1e-3, power: float = 0.0):
        self.tokens, self.rows, self.forwards = tokens, range(n_rows), 0
        self.objective = Objective("power", eps=eps, power=power)
        generator = torch.Generator().manual_seed(seed)
        scale = 0.5 + torch.rand(n_rows, 1, 1, generator=generator, dtype=torch.float64)
        noise = torch.rand(n_rows, 2**tokens, tokens, generator=generator, dtype=torch.float64)
        self.codes = torch.arange(2**tokens)[:, None] >> torch.arange(tokens) & 1
        self.table = scale * (0.5 + noise) * (1 + self.codes.sum(1)[:, None] / tokens)

    def view_losses(self, row, t, method, key, sampler=None):
        n = len(row)
        noise = Rows(
            position=torch.arange(n),
            step_rows=n,
            maskable=torch.ones(n, self.tokens, dtype=torch.bool),
            token_index=torch.arange(self.tokens),
        )
        draw = replace(method, objective=self.objective).draw_at(t, key, noise, sampler or Uniform())
        code = (draw.mask.long() << torch.arange(self.tokens)).sum(-1)
        losses = (draw.coefficient * draw.mask * self.table[row[:, None], code]).sum(-1)
        self.forwards += int(draw.active.sum())
        return losses * draw.active, draw.active

    losses = FakeMeter.losses

    def sizes(self, method) -> Tensor:
        return torch.full((len(self.rows),), self.tokens)

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """E_M[l] and E_M[l^2] under Bernoulli masks by enumeration, each of shape (R, len(t))."""
        p = p_mask(t, self.objective.eps)[:, None]
        masked = self.codes.sum(1)
        chance = p**masked * (1 - p) ** (self.tokens - masked)
        summed = (self.table * self.codes).sum(-1)[:, None] * p ** (self.objective.power - 1) / self.tokens
        return (chance * summed).sum(-1), (chance * summed**2).sum(-1)

    def exact(self, edges: Tensor) -> dict[str, float]:
        """A, B, C (over the data as a sample), the mean and ``within_cells``, by quadrature in log p_mask."""
        eps = self.objective.eps
        first, square, second, spread = 0.0, 0.0, 0.0, 0.0
        for low, high in itertools.pairwise(edges.tolist()):
            s, w = nodes(math.log(p_mask(low, eps)), math.log(p_mask(high, eps)), 16)
            t, w = (s.exp() - eps) / (1 - eps), w * s.exp() / (1 - eps)
            g, moment = self.moments(t)
            first, square, second = first + g @ w, square + g**2 @ w, second + moment @ w
            spread = spread + (high - low) * (g**2 @ w) - (g @ w) ** 2
        return {
            "A": float((second - square).mean()),
            "B": float((square - first**2).mean()),
            "C": float(first.var()),
            "mean": float(first.mean()),
            "second": float(second.mean()),
            "within_cells": float(spread.mean()),
        }
