"""Stand-ins with the interfaces of trainers that are not installed here; what they compute is in their documentation.

dllm's trainers (core/trainers), NeMo Automodel's strategy and recipe (recipes/dllm), Dream-Coder's loop.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK = 9


class Guess(nn.Module):
    """Logits that depend on the token, its place and the number of masked ones; it keeps what it was shown."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(MASK + 1, MASK + 1, generator=generator, dtype=torch.float64))
        self.config, self.shown = SimpleNamespace(_attn_implementation="sdpa"), []

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        self.shown.append((input_ids, attention_mask, position_ids))
        held = (input_ids == MASK).sum(1).double()[:, None, None]
        logits = self.table[input_ids] * (1 + 0.2 * held) + torch.arange(MASK + 1, device=input_ids.device) * 0.1
        return SimpleNamespace(logits=logits)


class Meter:
    def __init__(self):
        self.seen = []

    def update(self, split, value, weight):
        self.seen.append((split, value, weight))


class Loop:
    """The part of transformers' Trainer that a mixin meets."""

    def __init__(self, args, model=None):
        self.args, self.state = args, SimpleNamespace(global_step=0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [next(epoch_iterator) for _ in range(num_batches)], None


class MDLMTrainer(Loop):
    """dllm's: t iid uniform on [eps, 1], Bernoulli masks, weight 1 / t, three ways to normalise a micro-batch."""

    def __init__(self, args, scheduler=None, model=None):
        super().__init__(args)
        self.scheduler, self.time_epsilon = scheduler, args.time_epsilon
        self.loss_weight_type, self.loss_norm_type = args.loss_weight_type, args.loss_norm_type
        self.right_shift_logits, self.meter = args.right_shift_logits, Meter()
        self.processing_class = SimpleNamespace(mask_token_id=MASK, padding_side="right")
        self.accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    def _preprocess_inputs(self, inputs):
        return inputs

    def _postprocess_outputs(self, outputs):
        if self.right_shift_logits:
            outputs.logits = outputs.logits[:, [0, *range(outputs.logits.shape[1] - 1)]]
        return outputs

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        ids, maskable = inputs["input_ids"], inputs["labels"] != -100
        t = self.time_epsilon + (1 - self.time_epsilon) * torch.rand(len(ids))
        masked = (torch.rand(ids.shape) < t[:, None]) & maskable
        outputs = self._postprocess_outputs(model(torch.where(masked, MASK, ids)))
        nll = F.cross_entropy(outputs.logits.transpose(1, 2), ids, reduction="none") * masked
        if self.loss_weight_type == "scheduler":
            nll = nll / t[:, None]
        size = maskable.sum(1, keepdim=True)
        norms = {"token": size.sum().clamp_min(1), "batch": len(ids), "sequence": size.clamp_min(1) * len(ids)}
        loss = (nll / norms[self.loss_norm_type]).sum()
        return (loss, outputs) if return_outputs else loss


class BD3LMTrainer(MDLMTrainer):
    def __init__(self, args, scheduler=None, model=None):
        super().__init__(args, scheduler)
        self.block_size = args.block_size


class MDLMStrategy:
    """NeMo Automodel's."""

    normalization_mode = "supervised"

    def create_loss_fn(self, dllm_cfg):
        return None

    def setup_extra(self, recipe):
        pass

    def pre_step(self, recipe, batches):
        return -1, -1


def automodel_recipe(step: int, rank: int = 0, ranks: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        mask_token_id=MASK, dllm_eps=0.1, step_scheduler=SimpleNamespace(step=step), model_parts=[nn.Linear(1, 1)],
        _get_dp_rank=lambda: rank, _get_dp_group_size=lambda: ranks,
    )  # fmt: skip


def batch_of(n: int = 8, length: int = 7, prompt: int = 2) -> dict[str, Tensor]:
    """Rows of different lengths behind a prompt of two tokens."""
    ids = torch.randint(0, MASK, (n, length), generator=torch.Generator().manual_seed(1))
    end = prompt + 2 + torch.arange(n) % (length - prompt - 1)
    place = torch.arange(length)
    shown = place < end[:, None]
    return {
        "input_ids": ids,
        "attention_mask": shown.long(),
        "labels": torch.where(shown & (place >= prompt), ids, -100),
    }
