"""Dream (arXiv:2508.15487): Qwen2 without causal mask; position i is predicted by the hidden state at i - 1."""

from __future__ import annotations

from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from stabledllm.models.families.config import HubConfig
from stabledllm.models.families.qwen_layout import QwenLayout


class DreamConfig(HubConfig):
    """A configuration with the keys of ``Dream-org/Dream-v0-*``; ``mask_token_id`` is None where the file lacks it."""

    model_type = "Dream"
    required = {
        "attention_bias": (True, None),
        "attention_dropout": (0.0, None),
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "use_sliding_window": (False, None),
        "use_mrope": (False, None),
    }
    shift_logits = True
    # Attributes that Qwen2's modules read from a configuration, at the only values that are implemented.
    hidden_act = "silu"
    attention_dropout = 0.0
    sliding_window = None

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        max_position_embeddings: int = 131072,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 1_000_000.0,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        mask_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        super().__init__(**{key: value for key, value in kwargs.items() if key != "sliding_window"})
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_rows(self) -> int:
        return self.vocab_size


class DreamModel(QwenLayout):
    """A Dream model; its weights are ``model.{embed_tokens, layers.N, norm}`` and ``lm_head``, as in Qwen2."""

    config_class = DreamConfig
    _no_split_modules = ["Qwen2DecoderLayer"]

    def __init__(self, config: DreamConfig):
        super().__init__(config, Qwen2DecoderLayer, Qwen2RMSNorm)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        self.post_init()
