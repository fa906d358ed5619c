"""Profiles of a loss whose law is known, and profiles made up."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.ppots.profile import Profile, probe, rate_edges
from stabledllm.variance.components import NestedLosses
from tests.fakes.laws import Law
from tests.fakes.meters import FakeMeter


def probed(
    law: Law, method: str = "standard", *, rows=15, rates=20, masks=10, seed=0, options: MethodOptions | None = None
) -> Profile:
    """A profile of the law, from data of 1000 rows."""
    return probe(FakeMeter(law, 1000), Method.parse(method, options), rows=rows, rates=rates, masks=masks, seed=seed)


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


def nested_of(losses_abc: Tensor, width: Tensor | None = None) -> NestedLosses:
    """Nested losses made up, shape (a, b, c), in the iid design or in cells of the given widths."""
    return NestedLosses(losses_abc, torch.arange(len(losses_abc)), width)


def profile_with_root(root: Tensor, rows: int = 8, masks: int = 4, noise: float = 0.0) -> Profile:
    """A profile whose second moment is (nearly) the square of the given points."""
    generator = torch.Generator().manual_seed(0)
    scale = 1 + noise * torch.randn(rows, len(root), masks, generator=generator, dtype=torch.float64)
    return profile_of(root.double()[None, :, None] * scale)


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
