"""The standard forward process: each token is masked independently with probability p_mask(t)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stabledllm.noise.maskers.base import Masker, MaskInput


@dataclass(frozen=True)
class Bernoulli(Masker):
    """Masks token i iff u_i < p_mask(t); the row loss is ``1/P sum CE_i / p_mask``, times 1/p(t).

    >>> import torch
    >>> from stabledllm.noise.methods import Key, Method, Rows, Uniform
    >>> rows = Rows(torch.tensor([0]), 1, torch.ones(1, 4, dtype=torch.bool), torch.arange(4))
    >>> draw = Method.parse("standard").draw_at(torch.tensor([1.0]), Key(0, 0), rows, Uniform())
    >>> draw.coefficient  # every token is masked: CE / P
    tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]])
    """

    independent = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        probability = given.objective.p_mask(given.t)
        mask = (given.uniforms < probability[:, None, None]) & given.rows.maskable[:, None]
        weight = given.sampler.weight(given.t)
        each = weight * probability ** (given.objective.power - 1) / given.size
        return mask, mask * each[:, None, None], weight
