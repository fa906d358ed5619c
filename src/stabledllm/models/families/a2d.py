"""Autoregressive models converted to masked diffusion: Llama, Qwen2 and Qwen3 without their causal mask.

The layers are transformers' own, weights and config.json in dllm's A2D layout; ``stabledllm convert`` makes them.

Legend: N rows, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from stabledllm.models.families.a2d_config import A2DLlamaConfig, A2DQwen2Config, A2DQwen3Config
from stabledllm.models.families.annealing import Annealing
from stabledllm.models.families.decoder import DecoderModel


class A2DModel(DecoderModel):
    """A converted model, whose weights have the original's names.

    Attention is full, but in training while ``annealing`` is set, and inside of :meth:`causal`.
    """

    annealing: Annealing | None = None
    """The attention of this optimizer step, which training sets anew each step; None: full."""
    _causal = False

    def attended(self, position_ids: Tensor) -> Tensor | None:
        if self._causal and self.config._attn_implementation == "eager":
            return position_ids[:, :, None] >= position_ids[:, None, :]
        return self.annealing.allowed(position_ids) if self.annealing is not None and self.training else None

    @contextmanager
    def causal(self) -> Iterator[None]:
        """A context in which a token sees only itself and those before it: the original's attention, on whole rows."""
        self._set_causal(True)
        try:
            yield
        finally:
            self._set_causal(False)

    def _set_causal(self, causal: bool) -> None:
        # sdpa takes the layers' word for it where there is no mask; that is the kernel that the original runs.
        self._causal = causal
        for layer in self.model.layers:
            layer.self_attn.is_causal = causal


class A2DLlamaLMHeadModel(A2DModel):
    """A converted Llama."""

    config_class = A2DLlamaConfig
    _no_split_modules = ["LlamaDecoderLayer"]
    _layer, _norm, _rotary = LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding


class A2DQwen2LMHeadModel(A2DModel):
    """A converted Qwen2 or Qwen2.5."""

    config_class = A2DQwen2Config
    _no_split_modules = ["Qwen2DecoderLayer"]
    _layer, _norm, _rotary = Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding


class A2DQwen3LMHeadModel(A2DModel):
    """A converted Qwen3 without experts."""

    config_class = A2DQwen3Config
    _no_split_modules = ["Qwen3DecoderLayer"]
    _layer, _norm, _rotary = Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding


A2D_MODELS = {
    kind.config_class.model_type: kind for kind in (A2DLlamaLMHeadModel, A2DQwen2LMHeadModel, A2DQwen3LMHeadModel)
}
"""The models by the ``model_type`` of their config.json."""
