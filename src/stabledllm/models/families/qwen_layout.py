"""The names that Dream and LLaDA-MoE share with Qwen2: ``model.{embed_tokens, layers.N, norm}`` and ``lm_head``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PretrainedConfig

from stabledllm.models.families.base import MaskedDiffusionModel
from stabledllm.models.loss_head import OutputLayer


class QwenLayout(MaskedDiffusionModel):
    """A model whose weights have these names, made of a family's layers and norms.

    Args:
        layer: makes a layer from the config and its index. norm: makes a norm from its width and ``eps``.
    """

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PretrainedConfig, layer: Callable[..., nn.Module], norm: Callable[..., nn.Module]):
        super().__init__(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(layer(config, i) for i in range(config.num_hidden_layers))
        self.model.norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = OutputLayer(config.hidden_size, config.vocab_size, bias=False)

    def layers(self) -> nn.ModuleList:
        return self.model.layers

    def final_norm(self) -> nn.Module:
        return self.model.norm

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value
