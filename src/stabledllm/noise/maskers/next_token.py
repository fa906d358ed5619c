"""Next-token prediction in the masker's place: every response token carries loss and none is hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers.base import MaskInput


@dataclass(frozen=True)
class NextToken:
    """The mean cross-entropy of the maskable tokens, each predicted from those before it; nothing is random.

    A row's first token has none before it: it carries no loss, and the mean is over the others.
    """

    independent = False
    counted = False

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        predicted = given.maskable.clone()
        predicted[:, 0] = False
        coefficient = predicted.double() / predicted.sum(1, keepdim=True).clamp(min=1)
        return predicted[:, None], coefficient[:, None], torch.ones_like(given.t)

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        return sampler
