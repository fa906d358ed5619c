"""LLaDA-MoE (arXiv:2509.24389): norms on every query and key head, and experts in place of the MLP.

Legend: N rows, L positions, D width, T = N x L tokens, E experts, K experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RMSNorm

from stabledllm.models.families.config import HubConfig
from stabledllm.models.families.experts import Experts, GatedMLP
from stabledllm.models.families.qwen_layout import QwenLayout
from stabledllm.models.families.routing import Routing


class LLaDAMoEConfig(HubConfig):
    """A configuration with the keys of ``inclusionAI/LLaDA-MoE-7B-A1B-*``.

    The published files have ``llada`` or ``lladamoe`` as ``model_type``. ``mask_token_id`` is None where the file
    lacks it.
    """

    model_type = "lladamoe"
    required = {
        "attention_bias": (False, None),
        "attention_dropout": (0.0, None),
        "clip_qkv": (None,),
        "hidden_act": ("silu",),
        "moe_router_score_function": ("softmax", None),
        "norm_topk_prob": (False, None),
        "partial_rotary_factor": (1.0, None),
        "qk_layernorm": (True,),
        "rope_scaling": (None,),
        "routed_scaling_factor": (1, None),
    }
    shift_logits = False
    # Attributes that Qwen3's attention reads from a configuration, at the only values that are implemented.
    attention_bias = False
    attention_dropout = 0.0
    sliding_window = None

    def __init__(
        self,
        vocab_size: int = 157184,
        hidden_size: int = 2048,
        dense_intermediate_size: int = 8192,
        expert_intermediate_size: int = 1024,
        shared_expert_intermediate_size: int | None = None,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = None,
        num_experts: int = 64,
        num_experts_per_tok: int = 8,
        moe_layer_freq: list[int] | None = None,
        moe_router_enable_expert_bias: bool | None = None,
        max_position_embeddings: int = 4096,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 50_000.0,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.dense_intermediate_size = dense_intermediate_size
        self.expert_intermediate_size = expert_intermediate_size
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_layer_freq = [1] * num_hidden_layers if moe_layer_freq is None else moe_layer_freq
        self.moe_router_enable_expert_bias = moe_router_enable_expert_bias
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        super().__init__(**{key: value for key, value in kwargs.items() if key != "sliding_window"})
        self.tie_word_embeddings = tie_word_embeddings
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_rows(self) -> int:
        return self.vocab_size


class RoutedMLP(nn.Module):
    """A mixture of experts: each token's K most probable ones, weighted by probabilities that need not sum to 1.

    The probabilities are float32.
    """

    bias_only_chooses = False
    """The bias, where there is one, is a part of the shares as well."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.count, self.routing = config.num_experts_per_tok, Routing(config.num_experts)
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.expert_intermediate_size)
        if config.moe_router_enable_expert_bias:
            self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    @property
    def bias(self) -> Tensor | None:
        """The bias of each expert, (E,); None for a router without."""
        return self._buffers.get("expert_bias")

    @property
    def gate_weight(self) -> Tensor:
        """The weight that scores the experts, (E, D)."""
        return self.gate.weight

    def forward(self, x_NLD: Tensor) -> Tensor:
        x_TD = x_NLD.reshape(-1, x_NLD.shape[-1])
        share_TE = self.gate(x_TD).softmax(-1, dtype=torch.promote_types(x_TD.dtype, torch.float32))
        probability_TE = share_TE
        if self.bias is not None:
            share_TE = share_TE + self.bias
        share_TK, chosen_TK = share_TE.topk(self.count, dim=-1)
        self.routing.record(probability_TE, chosen_TK)
        return self.experts(x_TD, chosen_TK, share_TK.to(x_TD.dtype)).view_as(x_NLD)


class LLaDAMoELayer(GradientCheckpointingLayer):
    """A layer: pre-norm attention among all positions, then the experts (and a shared one, if any) or one MLP."""

    def __init__(self, config: LLaDAMoEConfig, index: int):
        super().__init__()
        width, routed = config.hidden_size, bool(config.moe_layer_freq[index])
        self.self_attn = Qwen3Attention(config, index)
        self.self_attn.is_causal = False
        self.mlp = RoutedMLP(config) if routed else GatedMLP(width, config.dense_intermediate_size)
        self.input_layernorm = Qwen3RMSNorm(width, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(width, eps=config.rms_norm_eps)
        if routed and config.shared_expert_intermediate_size:
            self.shared_expert = GatedMLP(width, config.shared_expert_intermediate_size)

    def forward(self, x_NLD: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs) -> Tensor:
        mixed, _ = self.self_attn(self.input_layernorm(x_NLD), position_embeddings, **kwargs)
        x_NLD = x_NLD + mixed
        inner = self.post_attention_layernorm(x_NLD)
        x_NLD = x_NLD + self.mlp(inner)
        return x_NLD + self.shared_expert(inner) if hasattr(self, "shared_expert") else x_NLD


class LLaDAMoEModelLM(QwenLayout):
    """A LLaDA-MoE model; its weights are ``model.{embed_tokens, layers.N, norm}`` and ``lm_head``.

    The experts are numbered, ``layers.N.mlp.experts.E``. An auxiliary loss balances them only where one asks for it
    (``router.loss``), as in the published fine-tuning default (``output_router_logits`` false).
    """

    config_class = LLaDAMoEConfig
    _no_split_modules = ["LLaDAMoELayer"]

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__(config, LLaDAMoELayer, Qwen3RMSNorm)
        self.post_init()
