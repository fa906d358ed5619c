"""LLaDA (arXiv:2502.09992) and LLaDA 1.5: a Llama without causal mask, in the names of the hub's checkpoints.

Legend: N rows, L positions, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from stabledllm.models.families.base import MaskedDiffusionModel
from stabledllm.models.families.config import HubConfig
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.loss_head import OutputLayer


class LLaDAConfig(HubConfig):
    """A configuration with the keys of ``GSAI-ML/LLaDA-8B-*``; ``mask_token_id`` is None where the file lacks it."""

    model_type = "llada"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "initializer_range": "init_std",
        "tie_word_embeddings": "weight_tying",
    }
    required = {
        "activation_type": ("silu",),
        "alibi": (False, None),
        "attention_dropout": (0.0, None),
        "attention_layer_norm": (False, None),
        "bias_for_layer_norm": (False, None),
        "block_group_size": (1, None),
        "block_type": ("llama",),
        "clip_qkv": (None,),
        "embedding_dropout": (0.0, None),
        "include_bias": (False, None),
        "include_qkv_bias": (False, None),
        "input_emb_norm": (False, None),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": (False, None),
        "residual_dropout": (0.0, None),
        "rope": (True,),
        "rope_full_precision": (True,),
        "rope_scaling": (None,),
        "scale_logits": (False, None),
    }
    shift_logits = False

    def __init__(
        self,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        mlp_hidden_size: int | None = None,
        mlp_ratio: int = 4,
        max_sequence_length: int = 4096,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 500_000.0,
        weight_tying: bool = False,
        init_std: float = 0.02,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or n_heads
        self.mlp_hidden_size = mlp_hidden_size or mlp_ratio * d_model
        self.mlp_ratio = mlp_ratio
        self.max_sequence_length = max_sequence_length
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.weight_tying = weight_tying
        self.init_std = init_std
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def embedding_rows(self) -> int:
        """The number of rows of the embedding and of the head: ``vocab_size`` plus padding."""
        return self.embedding_size or self.vocab_size


class LLaDABlock(GradientCheckpointingLayer):
    """A layer: pre-norm attention among all positions, then a gated MLP; rotations in float32 as published."""

    is_causal = False
    attention_dropout = 0.0

    def __init__(self, config: LLaDAConfig, index: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, index, config.head_dim
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        width, key_width = config.d_model, config.n_kv_heads * config.head_dim
        self.attn_norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, key_width, bias=False)
        self.v_proj = nn.Linear(width, key_width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def forward(
        self,
        x_NLD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        **kwargs,
    ) -> Tensor:
        inner = self.attn_norm(x_NLD)
        x_NLD = x_NLD + self._attention(inner, position_embeddings, attention_mask, past_key_values, **kwargs)
        inner = self.ff_norm(x_NLD)
        return x_NLD + self.ff_out(nn.functional.silu(self.ff_proj(inner)) * self.up_proj(inner))

    def _attention(self, x_NLD: Tensor, position_embeddings, attention_mask: Tensor | None, cache, **kwargs) -> Tensor:
        shape = (*x_NLD.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x_NLD).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotated.to(v.dtype) for rotated in apply_rotary_pos_emb(q, k, *position_embeddings))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs)
        return self.attn_out(mixed.reshape(x_NLD.shape))


class LLaDAModelLM(MaskedDiffusionModel):
    """A LLaDA model; weights are ``model.transformer.{wte, blocks.N, ln_f, ff_out}``, without ``ff_out`` if tied."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDABlock"]
    _tied_weights_keys = {"model.transformer.ff_out.weight": "model.transformer.wte.weight"}
    _keep_rotary_in_float32 = True

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        rows, width = config.embedding_rows, config.d_model
        transformer = nn.Module()
        transformer.wte = nn.Embedding(rows, width)
        transformer.blocks = nn.ModuleList(LLaDABlock(config, i) for i in range(config.n_layers))
        transformer.ln_f = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        transformer.ff_out = OutputLayer(width, rows, bias=False)
        self.model = nn.Module()
        self.model.transformer = transformer
        self.post_init()

    def layers(self) -> nn.ModuleList:
        return self.model.transformer.blocks

    def final_norm(self) -> nn.Module:
        return self.model.transformer.ln_f

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer.ff_out

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.transformer.ff_out = value
