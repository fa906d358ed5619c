"""A meter whose loss law is known, and profiles drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import Profile, probe


def _rising(t: Tensor) -> Tensor:
    return 1 + t


def _falling(t: Tensor) -> Tensor:
    return 2 - t


@dataclass
class Law:
    """``l_k = x_i h(t) + sd(t) z_k``: x_i of mean 1 and variance ``tau2`` over rows, z_k of correlation ``rho``."""

    tau2: float = 0.25
    rho: float = 0.0
    h: Callable[[Tensor], Tensor] = _rising
    sd: Callable[[Tensor], Tensor] = _falling
    heavy: bool = False
    """z is a centred Exp(1) instead of a normal."""

    def second_moment(self, t: Tensor, views: int = 1) -> Tensor:
        return self.h(t) ** 2 * (1 + self.tau2) + self.sd(t) ** 2 * (1 + (views - 1) * self.rho) / views


class FakeMeter:
    """As LossMeter: losses are a pure function of (row, position, key)."""

    def __init__(self, law: Law, n_rows: int = 1000):
        self.law, self.forwards, self.objective = law, 0, Objective()
        self.rows = [SimpleNamespace(response_length=10 + i % 7) for i in range(n_rows)]

    def view_losses(self, row, t, method, key, sampler=None):
        law, views = self.law, method.views.count
        x = 1 + law.tau2**0.5 * torch.special.ndtri(Key(99, 0).row_uniforms(Stream.DATA, row))
        index = torch.arange(len(row))
        u = torch.stack([key.row_uniforms(Stream.MASK, index, view=k) for k in range(views)], 1)
        z = -torch.log1p(-u) - 1 if law.heavy else torch.special.ndtri(u)
        if views == 2:
            z[:, 1] = law.rho * z[:, 0] + (1 - law.rho**2) ** 0.5 * z[:, 1]
        used = method.views.active(t)
        self.forwards += int(used.sum())
        return ((x * law.h(t))[:, None] + law.sd(t)[:, None] * z) * used, used


def probed(
    law: Law, method: str = "standard", *, rows=15, rates=20, masks=10, seed=0, options: MethodOptions | None = None
) -> Profile:
    """A profile of the law."""
    return probe(FakeMeter(law), Method.parse(method, options), rows=rows, rates=rates, masks=masks, seed=seed)


def profile_of(losses_abc: Tensor) -> Profile:
    """A one-view profile on equal cells with the given losses, shape (a, b, c)."""
    a, b, _ = losses_abc.shape
    return Profile(
        edges=torch.arange(b + 1, dtype=torch.float64) / b,
        view_losses=losses_abc.double()[..., None],
        used=torch.ones(a, b, 1, dtype=torch.bool),
        cost=torch.ones(b, dtype=torch.float64),
        rows=torch.arange(a),
    )


def profile_with_root(root: Tensor, rows: int = 8, masks: int = 4, noise: float = 0.0) -> Profile:
    """A profile whose second moment is (nearly) the square of the given points."""
    generator = torch.Generator().manual_seed(0)
    scale = 1 + noise * torch.randn(rows, len(root), masks, generator=generator, dtype=torch.float64)
    return profile_of(root.double()[None, :, None] * scale)
