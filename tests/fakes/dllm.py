"""dllm's interface as its source has it (core/trainers/mdlm.py), for where the package itself is not to be had."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class MDLMTrainer:
    """What a scheduler meets there: u from [eps, 1], masks and weights by the scheduler, mean over sequences."""

    mask_id = 256

    def __init__(self, model, args, scheduler):
        self.model, self.args, self.scheduler = model, args, scheduler

    def row_losses(self, input_ids: Tensor, maskable: Tensor) -> Tensor:
        eps = self.args.time_epsilon
        u = eps + (1 - eps) * torch.rand(len(input_ids))
        masked = (torch.rand(input_ids.shape) < 1 - self.scheduler.alpha(u)[:, None]) & maskable
        weight = -self.scheduler.alpha_derivative(u) / (1 - self.scheduler.alpha(u))
        logits = self.model(torch.where(masked, self.mask_id, input_ids)).logits
        nll = F.cross_entropy(logits.transpose(1, 2), input_ids, reduction="none") * masked
        return weight * nll.sum(1) / maskable.sum(1)
