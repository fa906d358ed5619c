"""The stacks of docs/your_own_model.md in small: what a model and a trainer look like in each, by their sources.

They know nothing of this library. Legend: B rows, L positions.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK, PAD, EPS = 32, 31, 1e-3


class Body(nn.Module):
    """Embeddings, one bidirectional layer and a head."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.layer = nn.Embedding(MASK + 1, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0)
        self.head = nn.Linear(16, MASK + 1)

    def logits(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embedding(ids).transpose(0, 1)
        padding = None if attention_mask is None else ~attention_mask.bool()
        return self.head(self.layer(hidden, src_key_padding_mask=padding).transpose(0, 1))


class LLaDAModelLM(Body):
    """LLaDA's remote code: the second argument is not the attention mask."""

    def forward(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None, **_: object
    ):
        assert inputs_embeds is None
        return SimpleNamespace(logits=self.logits(input_ids, attention_mask))


class HFModel(Body):
    """A model as transformers' are called."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object):
        return SimpleNamespace(logits=self.logits(input_ids, attention_mask))


class GPT(Body):
    """nanoGPT's, with full attention: ids in, a pair out."""

    def forward(self, idx: Tensor, targets: Tensor | None = None):
        logits = self.logits(idx)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class MDLMTrainer:
    """dllm's ``compute_loss`` (core/trainers/mdlm.py), with ``loss_norm_type`` "sequence"."""

    def __init__(self, model, args, scheduler=None, train_dataset=None):
        self.model, self.args, self.scheduler, self.train_dataset = model, args, scheduler, train_dataset

    def compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool = False):
        ids, maskable = inputs["input_ids"], inputs["labels"] != -100
        t = EPS + (1 - EPS) * torch.rand(len(ids))
        masked = (torch.rand(ids.shape) < 1 - self.scheduler.alpha(t)[:, None]) & maskable
        weight = -self.scheduler.alpha_derivative(t) / (1 - self.scheduler.alpha(t) + 1e-6)
        outputs = model(input_ids=torch.where(masked, MASK, ids), attention_mask=inputs.get("attention_mask"))
        nll = F.cross_entropy(outputs.logits.transpose(1, 2), ids, reduction="none") * masked
        loss = (weight * nll.sum(1) / maskable.sum(1)).mean()
        return (loss, outputs) if return_outputs else loss


class MDLMStrategy:
    """NeMo Automodel's corruption (recipes/dllm/strategy.py): uniform t, a generator for every row."""

    def apply_corruption(
        self, input_ids, loss_mask, mask_token_id, *, eps, block_size=None, half_life_ratio=None, generator=None
    ):
        t = torch.rand(len(input_ids), 1, generator=generator)
        p_mask = ((1 - eps) * t + eps).expand(input_ids.shape)
        masked = (torch.rand(input_ids.shape, generator=generator) < p_mask) & loss_mask.bool()
        return torch.where(masked, mask_token_id, input_ids), masked, p_mask


class Recipe:
    """The part of NeMo Automodel's recipe around a strategy: row by row, over the step's supervised tokens."""

    def __init__(self, model, strategy: MDLMStrategy):
        self.model, self.strategy = model, strategy

    def train_loss(self, input_ids: Tensor, loss_mask: Tensor, step: int) -> Tensor:
        rows = []
        for i in range(len(input_ids)):
            generator = torch.Generator().manual_seed(hash((step, i)) % 2**63)  # seeds side by side draw alike
            one = input_ids[i : i + 1], loss_mask[i : i + 1]
            rows.append(self.strategy.apply_corruption(*one, MASK, eps=EPS, generator=generator))
        noisy, masked, p_mask = (torch.cat(part) for part in zip(*rows, strict=True))
        logits = self.model(input_ids=noisy).logits
        nll = F.cross_entropy(logits.transpose(1, 2), input_ids, reduction="none")
        return (nll * masked / p_mask.clamp(min=1e-8)).sum() / loss_mask.sum()
