"""LLaDA2.0 and 2.1 (mini, flash): blocks, experts with a sigmoid router, one projection for queries, keys and values.

Legend: N rows, L positions, D width, T = N x L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from stabledllm.models.families.block_model import BlockForward
from stabledllm.models.families.experts import Experts, GatedMLP
from stabledllm.models.families.llada2_config import LLaDA2MoeConfig
from stabledllm.models.families.rotary import rotary
from stabledllm.models.families.router import SigmoidRouter
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.loss_head import OutputLayer


class RoutedMLP(nn.Module):
    """The experts that the router chooses, weighed by its shares, and the shared expert as it is."""

    def __init__(self, config: LLaDA2MoeConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.moe_intermediate_size
        self.gate = SigmoidRouter(config)
        self.experts = Experts(config.num_experts, width, hidden)
        if config.num_shared_experts:
            self.shared_experts = GatedMLP(width, hidden * config.num_shared_experts)

    def forward(self, x_NLD: Tensor) -> Tensor:
        x_TD = x_NLD.reshape(-1, x_NLD.shape[-1])
        routed = self.experts(x_TD, *self.gate(x_TD)).view_as(x_NLD)
        return routed + self.shared_experts(x_NLD) if hasattr(self, "shared_experts") else routed


class LLaDA2Attention(nn.Module):
    """Attention with norms on every query and key head, of which the first part is turned by the position."""

    is_causal = False
    attention_dropout = 0.0

    def __init__(self, config: LLaDA2MoeConfig, index: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, index, config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=False)
        self.dense = nn.Linear(self.heads[0] * self.head_dim, config.hidden_size, bias=False)
        self.query_layernorm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.key_layernorm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        x_NLD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        **kwargs,
    ) -> Tensor:
        parts = self.query_key_value(x_NLD).view(*x_NLD.shape[:2], -1, self.head_dim).split(self.heads, dim=2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        q, k = self._turned(self.query_layernorm(q), self.key_layernorm(k), *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs)
        return self.dense(mixed.reshape(*x_NLD.shape[:2], -1))

    def _turned(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned = cos.shape[-1]
        rotated = apply_rotary_pos_emb(q[..., :turned], k[..., :turned], cos, sin)
        q, k = (torch.cat((first, x[..., turned:]), dim=-1) for first, x in zip(rotated, (q, k), strict=True))
        return q, k


class LLaDA2Layer(GradientCheckpointingLayer):
    """A layer: pre-norm attention, then one MLP in the first layers and experts in the others."""

    def __init__(self, config: LLaDA2MoeConfig, index: int):
        super().__init__()
        width, routed = config.hidden_size, index >= config.first_k_dense_replace
        self.attention = LLaDA2Attention(config, index)
        self.mlp = RoutedMLP(config) if routed else GatedMLP(width, config.intermediate_size)
        self.input_layernorm = Qwen3RMSNorm(width, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(width, eps=config.rms_norm_eps)

    def forward(self, x_NLD: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs) -> Tensor:
        x_NLD = x_NLD + self.attention(self.input_layernorm(x_NLD), position_embeddings, **kwargs)
        return x_NLD + self.mlp(self.post_attention_layernorm(x_NLD))


class LLaDA2MoeModelLM(BlockForward):
    """A LLaDA2 model; its weights are ``model.{word_embeddings, layers.N, norm}`` and ``lm_head``.

    Adapters on ``all-linear`` are put on attention, shared and routed experts; the router keeps its weights under LoRA.
    """

    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDA2Layer"]
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}
    # Steps of the bias, a thousandth each, would be lost in bfloat16.
    _keep_in_fp32_modules_strict = ["expert_bias"]

    def __init__(self, config: LLaDA2MoeConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(LLaDA2Layer(config, i) for i in range(config.num_hidden_layers))
        self.model.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = OutputLayer(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SigmoidRouter):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def rotations(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(position_ids, self.config.rotary_dim, self.config.rope_theta)

    def layers(self) -> nn.ModuleList:
        return self.model.layers

    def final_norm(self) -> nn.Module:
        return self.model.norm

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value
