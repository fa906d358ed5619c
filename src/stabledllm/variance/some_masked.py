"""Independent masks given that they hide at least one token.

At small t nearly every draw hides nothing, and one in a thousand decides the variance: a sample seldom contains it, and
its error is too small for the same reason. Here every draw hides a token, and the known chance of that is its weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.maskers import Bernoulli, MaskInput
from stabledllm.noise.objective import Objective


@dataclass(frozen=True)
class SomeMasked(Bernoulli):
    """Bernoulli masks of a single view, given that at least one token is masked.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.methods import Rows, Single
    >>> rows = Rows(torch.tensor([0]), 1, torch.ones(1, 2, dtype=torch.bool), torch.arange(2))
    >>> t, u = torch.tensor([0.01]).double(), torch.tensor([[[0.7, 0.9]]]).double()
    >>> SomeMasked()(MaskInput(t, u, Single(), rows, Uniform(), Objective(eps=0.0)))[0]
    tensor([[[ True, False]]])
    """

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        return super().__call__(replace(given, uniforms=_with_a_low_one(given)))


def chance_of_some(t: Tensor, size: Tensor, objective: Objective) -> Tensor:
    """Probability ``1 - (1 - p_mask)^P`` that a Bernoulli mask hides a token, in the broadcast shape of t and size.

    >>> chance_of_some(torch.tensor(0.5), torch.tensor(2), Objective(eps=0.0))
    tensor(0.7500)
    """
    return -torch.expm1(size * torch.log1p(-objective.p_mask(t)))


def _with_a_low_one(given: MaskInput) -> Tensor:
    """Uniforms of which the least over a row's maskable tokens is below p_mask, and which are otherwise as before.

    The least of P uniforms has the distribution function 1 - (1 - u)^P, and given it the others are uniform above it.
    The least is moved to the same quantile of its law below p_mask; the others keep their places between it and 1.
    """
    u, size = given.uniforms, given.size
    outside = ~given.rows.maskable[:, None]
    least = u.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
    size_, chance = size[:, None, None], chance_of_some(given.t, size, given.objective)[:, None, None]
    quantile = -torch.expm1(size_ * torch.log1p(-least))
    moved = -torch.expm1(torch.log1p(-(chance * quantile).clamp(max=1 - 1e-16)) / size_)
    return (moved + (u - least) / (1 - least) * (1 - moved)).masked_fill(outside, 1.0)
