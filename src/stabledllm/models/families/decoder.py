"""Models of the layers of Llama, Qwen2 or Qwen3, as transformers has them, in whatever attention.

Legend: N rows, L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabledllm.models.families.decoder_config import DecoderConfig
from stabledllm.models.families.qwen_layout import QwenLayout


class DecoderModel(QwenLayout):
    """A model with the original's names: ``model.{embed_tokens, layers.N, norm}``, ``lm_head``; no layer is causal."""

    _layer: type[nn.Module]
    _norm: type[nn.Module]
    _rotary: type[nn.Module]

    def __init__(self, config: DecoderConfig):
        super().__init__(config, self._layer, self._norm)
        # Not a part of the model: its frequencies stay in float32 when the model is cast, and on no meta device.
        with torch.device("cpu"):
            self._rotations = (self._rotary(config),)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        self.post_init()

    def rotations(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotations[0](position_ids.new_empty((), dtype=torch.float32), position_ids)
