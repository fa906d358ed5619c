"""Next-token prediction as a masker: every response token has a loss and none is hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.maskers.base import Masker, MaskInput


@dataclass(frozen=True)
class NextToken(Masker):
    """The mean cross-entropy of the maskable tokens, each predicted from those before it; nothing is random.

    A row's first token has none before it: it has no loss, and the mean is over the others.

    >>> from stabledllm.noise.methods import Key, Method, Rows, Uniform
    >>> rows = Rows(torch.tensor([0]), 1, torch.ones(1, 3, dtype=torch.bool), torch.arange(3))
    >>> Method.parse("autoregressive").draw_at(torch.tensor([0.5]), Key(0, 0), rows, Uniform()).coefficient
    tensor([[[0.0000, 0.5000, 0.5000]]], dtype=torch.float64)
    """

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        predicted = given.rows.maskable.clone()
        predicted[:, 0] = False
        coefficient = predicted.double() / predicted.sum(1, keepdim=True).clamp(min=1)
        return predicted[:, None], coefficient[:, None], torch.ones_like(given.t)
