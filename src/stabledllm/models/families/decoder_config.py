"""Configurations in the keys of Llama, Qwen2 and Qwen3, which the models made from these share.

config.json keeps the form that transformers 4 wrote, since the original code reads it with transformers 4:
``rope_theta`` and ``rope_scaling``, where transformers 5 writes ``rope_parameters``. Both are read.
"""

from __future__ import annotations

from typing import Any, ClassVar

from stabledllm.errors import UserError
from stabledllm.models.families.config import HubConfig

FULL = "full_attention"


class DecoderConfig(HubConfig):
    """The keys of Llama, Qwen2 and Qwen3, by transformers' names; what was not read is not written.

    Args:
        mask_token_id: None where a file lacks the key: then the tokenizer says it.

    Raises:
        UserError: a layer that does not attend to the whole row.
    """

    model_type = "decoder"
    required = {
        "attention_dropout": (0.0, None),
        "hidden_act": ("silu",),
        "partial_rotary_factor": (1.0, None),
        "pretraining_tp": (1, None),
        "use_sliding_window": (False, None),
    }
    # Attributes that transformers' layers read from a configuration, at the only values that are implemented.
    hidden_act = "silu"
    attention_dropout = 0.0
    sliding_window = None
    _head_dim: ClassVar[int | None] = None

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        max_position_embeddings: int = 2048,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10_000.0,
        rope_scaling: dict | None = None,
        rope_parameters: dict | None = None,
        tie_word_embeddings: bool = False,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        initializer_range: float = 0.02,
        mask_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or self._head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = _rope(rope_theta, rope_scaling, rope_parameters)
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        self.layer_types = [FULL] * num_hidden_layers
        # Qwen's files give the size of a window and, beside it, that none is used.
        unused = ("sliding_window", "layer_types", "max_window_layers")
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        super().__init__(**{key: value for key, value in kwargs.items() if key not in (*unused, *special)})
        self.tie_word_embeddings = tie_word_embeddings
        for key in special:
            setattr(self, key, kwargs.get(key))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        other = sorted({str(kind) for kind in config_dict.get("layer_types") or ()} - {FULL})
        if other:
            raise UserError(f"config.json: layer_types: expected {FULL} in every layer, found {other[0]!r}.")
        return super().from_dict(config_dict, **kwargs)

    @property
    def embedding_rows(self) -> int:
        return self.vocab_size

    def _restored(self, written: dict[str, Any]) -> dict[str, Any]:
        """The keys that were read, and what training changes; transformers' other names for them are left out."""
        restored = super()._restored(written)
        read = getattr(self, "_read", None)
        if read is None:
            return restored
        kept = {key: value for key, value in restored.items() if key in read or key in ("dtype", "architectures")}
        changed = self._changed(read)
        return {key: value for key, value in (kept | changed).items() if key not in changed or value is not None}

    def _changed(self, read: dict[str, Any]) -> dict[str, Any]:
        """The keys that training changes, with their values now; one that is None is not written.

        Args:
            read: what config.json said.
        """
        return {}


def _rope(theta: float, scaling: dict | None, parameters: dict | None) -> dict[str, Any]:
    """The rotary embedding in transformers 5's form, from either form."""
    rope = {"rope_theta": theta} | dict(parameters or scaling or {})
    kind = rope.pop("type", "default")
    return {"rope_type": kind} | rope
