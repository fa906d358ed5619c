"""Meters whose loss law is known exactly, and what A, B, C and the variances of their losses are.

Legend: a rows, b rates, c masks, K views, n evaluations, P tokens, R rows of the data.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import p_mask
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import Profile, rate_edges


def nodes(low: float, high: float, count: int = 12) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [low, high]."""
    x, w = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(w * half)


@dataclass(frozen=True)
class Law:
    """``l_k = x_i h(t) + sd(t) z_k``: x of mean 1 and variance ``tau2``, corr(z) ``rho``; h, sd linear."""

    tau2: float = 0.25
    h0: float = 1.0
    h1: float = 2.0
    s0: float = 1.5
    s1: float = -1.0
    rho: float = 0.0

    def h(self, t: Tensor) -> Tensor:
        return self.h0 + self.h1 * t

    def sd(self, t: Tensor) -> Tensor:
        return self.s0 + self.s1 * t

    def second_moment(self, t: Tensor) -> Tensor:
        return (1 + self.tau2) * self.h(t) ** 2 + self.sd(t) ** 2

    def integral(self, f, low: float = 0.0, high: float = 1.0) -> float:
        t, w = nodes(low, high)
        return float(f(t) @ w)

    @property
    def mean(self) -> float:
        return self.h0 + self.h1 / 2

    @property
    def pattern(self) -> float:
        """A of one view."""
        return self.s0**2 + self.s0 * self.s1 + self.s1**2 / 3

    @property
    def rate(self) -> float:
        """B."""
        return (1 + self.tau2) * self.h1**2 / 12

    @property
    def data(self) -> float:
        """C."""
        return self.tau2 * self.mean**2

    @property
    def total(self) -> float:
        return self.pattern + self.rate + self.data

    def within_cells(self, width: Tensor) -> float:
        """``E sum w^2 Var_cell(g)``: what the cells design moves from B to C."""
        return (1 + self.tau2) * self.h1**2 / 12 * float((width**4).sum())


class FakeMeter:
    """As LossMeter, for a :class:`Law`; x has exactly the law's mean and (unbiased) variance over the data."""

    def __init__(self, law: Law, n_rows: int = 20_000):
        self.law, self.forwards, self.objective = law, 0, Objective()
        self.rows = range(n_rows)
        z = torch.special.ndtri((torch.arange(n_rows, dtype=torch.float64) + 0.5) / n_rows)
        self.x = 1 + law.tau2**0.5 * z / z.std()

    def view_losses(self, row, t, method, key: Key, sampler=None):
        count, index = method.views.count, torch.arange(len(row))
        uniforms = [key.row_uniforms(Stream.MASK, index, view=k) for k in range(count)]
        z = torch.special.ndtri(torch.stack(uniforms, 1))
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
        draw = method.draw_at(t, key, noise, sampler or Uniform(), self.objective)
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
        draw = method.draw_at(t, key, noise, sampler or Uniform(), self.objective)
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


def exact_profile(law: Law, rows: int = 100, rates: int = 20) -> Profile:
    """A profile without sampling error: its moments over rows and masks are those of the law (one view)."""
    edges = rate_edges(rates)
    t = (edges[1:] + edges[:-1]) / 2
    z = torch.special.ndtri((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)
    # Mean such that the pair estimate of (E x)^2 is 1 and the mean of x^2 is 1 + tau2.
    x = (1 + law.tau2 / rows) ** 0.5 + law.tau2**0.5 * z / z.std()
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    losses = (x[:, None] * law.h(t))[..., None] + law.sd(t)[:, None] * sign
    shape = torch.ones(rows, len(t), 1, dtype=torch.bool)
    cost = torch.ones(len(t), dtype=torch.float64)
    views = losses[..., None]
    return Profile(edges=edges, view_losses=views, used=shape, cost=cost, rows=torch.arange(rows))


def assert_agree(one, other, what: str = "", z: float = 4.26) -> None:
    """Two independent estimates agree within their joint error."""
    error = (one.stderr**2 + other.stderr**2) ** 0.5
    assert abs(one.value - other.value) <= z * error, f"{what}: {one} against {other}"
