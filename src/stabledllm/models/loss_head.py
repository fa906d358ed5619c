"""Cross-entropies at the positions that carry loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropies(
    hidden_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_S: Tensor, *, weights_S: Tensor | None = None
) -> Tensor:
    """-log softmax(h W' + b) at the targets, in nats, float32 or wider, shape (S,)."""
    logits = F.linear(hidden_SD, weight_VD, bias_V)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets_S, reduction="none")
