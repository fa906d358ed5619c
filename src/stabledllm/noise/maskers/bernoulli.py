"""Independent masks with probability p_mask(t): the standard forward process."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.schedule import p_mask


@dataclass(frozen=True)
class Bernoulli:
    """Token i is masked iff u_i < p_mask(t); the row loss is ``1/P sum CE_i / p_mask``, times 1/p(t)."""

    independent = True
    counted = False

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        probability = p_mask(given.t, given.eps)
        mask = (given.uniforms < probability[:, None, None]) & given.maskable[:, None]
        weight = given.sampler.weight(given.t)
        each = weight * probability ** (given.power - 1) / given.maskable.sum(1)
        return mask, mask * each[:, None, None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        return sampler
