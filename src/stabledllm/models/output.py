"""The output of a model's forward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


@dataclass
class MDMOutput(ModelOutput):
    """A forward's output: ``nll``, cross-entropies in nats at the selected positions, shape (S,); else ``logits``."""

    nll: Tensor | None = None
    logits: Tensor | None = None
