"""Independent masks given that they hide at least one token.

At small t nearly every draw hides nothing and one in a thousand decides the variance: a sample seldom sees it, and its
error is too small for the same reason. Drawn given that something is hidden, and weighed by the known chance of that,
every draw tells something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.maskers import Bernoulli, MaskInput
from stabledllm.noise.schedule import p_mask


@dataclass(frozen=True)
class SomeMasked(Bernoulli):
    """Bernoulli masks of one view, given that one token at least is masked."""

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        return super().__call__(replace(given, uniforms=_with_a_low_one(given)))


def chance_of_some(t: Tensor, size: Tensor, eps: float) -> Tensor:
    """Probability ``1 - (1 - p_mask)^P`` that a Bernoulli mask hides something; the broadcast shape of both."""
    return -torch.expm1(size * torch.log1p(-p_mask(t, eps)))


def _with_a_low_one(given: MaskInput) -> Tensor:
    """Uniforms whose least over the row's maskable tokens is below p_mask, otherwise distributed as before.

    The least of P uniforms has the distribution function 1 - (1 - u)^P, and given it the others are uniform above it:
    the least is moved to the same quantile of its law below p_mask, the others keep their places between it and 1.
    """
    u, size = given.uniforms, given.maskable.sum(1)
    outside = ~given.maskable[:, None]
    least = u.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
    size_, chance = size[:, None, None], chance_of_some(given.t, size, given.eps)[:, None, None]
    quantile = -torch.expm1(size_ * torch.log1p(-least))
    moved = -torch.expm1(torch.log1p(-(chance * quantile).clamp(max=1 - 1e-16)) / size_)
    return (moved + (u - least) / (1 - least) * (1 - moved)).masked_fill(outside, 1.0)
