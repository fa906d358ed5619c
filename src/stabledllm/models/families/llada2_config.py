"""The configuration of LLaDA2.0 and 2.1, mini and flash, in the keys of ``inclusionAI/LLaDA2.*``."""

from __future__ import annotations

from typing import Any

from stabledllm.errors import UserError
from stabledllm.models.block_layouts import BLOCK_LAYOUTS, LLADA2
from stabledllm.models.families.block_config import OwnBlocks
from stabledllm.models.families.config import HubConfig


class LLaDA2MoeConfig(OwnBlocks, HubConfig):
    """LLaDA2.0's and 2.1's keys, which are the same.

    The published files lack the size of a block and the mask token: the first is 32, and the second the tokenizer's,
    else the published id.

    Args:
        block_size: tokens of a block. Training may change it, and what is saved then says so.

    Raises:
        UserError: experts that cannot be grouped or chosen so, or a part of a head that cannot be turned in pairs.
    """

    model_type = LLADA2
    required = {
        "attention_dropout": (0.0, None),
        "embedding_dropout": (0.0, None),
        "hidden_act": ("silu",),
        "norm_head": (False, None),
        "num_nextn_predict_layers": (0, None),
        "output_dropout": (0.0, None),
        "rope_scaling": (None,),
        "router_dtype": ("fp32", None),
        "score_function": ("sigmoid", None),
        "use_bias": (False, None),
        "use_qk_norm": (True, None),
        "use_qkv_bias": (False, None),
        "use_rmsnorm": (True, None),
        "use_sliding_window": (False, None),
    }

    def __init__(
        self,
        vocab_size: int = 157184,
        hidden_size: int = 2048,
        intermediate_size: int = 5120,
        num_hidden_layers: int = 20,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = 4,
        head_dim: int | None = None,
        num_experts: int = 256,
        num_experts_per_tok: int = 8,
        num_shared_experts: int | None = 1,
        moe_intermediate_size: int = 512,
        first_k_dense_replace: int | None = 1,
        n_group: int = 8,
        topk_group: int = 4,
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 2.5,
        moe_router_enable_expert_bias: bool = True,
        partial_rotary_factor: float = 0.5,
        max_position_embeddings: int = 32768,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 600_000.0,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        block_size: int | None = None,
        mask_token_id: int | None = None,
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
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = num_shared_experts or 0
        self.moe_intermediate_size = moe_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace or 0
        self.n_group = n_group
        self.topk_group = topk_group
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.moe_router_enable_expert_bias = moe_router_enable_expert_bias
        self.partial_rotary_factor = partial_rotary_factor
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.block_size = block_size or BLOCK_LAYOUTS[LLADA2].size
        self.mask_token_id = mask_token_id
        unused = ("sliding_window", "max_window_layers")  # a window is described, and beside it that none is used
        super().__init__(**{key: value for key, value in kwargs.items() if key not in unused})
        self.tie_word_embeddings = tie_word_embeddings
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self._check_experts()
        self._check_turned()

    @property
    def rotary_dim(self) -> int:
        """The numbers of a head that are turned by its position; the rest are not."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def embedding_rows(self) -> int:
        return self.vocab_size

    def _check_experts(self) -> None:
        experts, groups, kept, chosen = self.num_experts, self.n_group, self.topk_group, self.num_experts_per_tok
        if experts % groups or experts < 2 * groups:
            raise UserError(
                f"config.json: n_group: expected groups of equally many of the {experts} experts, two or more each, "
                f"found {groups} groups."
            )
        if kept > groups:
            raise UserError(f"config.json: topk_group: expected at most n_group = {groups}, found {kept}.")
        if chosen > (within := kept * experts // groups):
            raise UserError(
                f"config.json: num_experts_per_tok: expected at most the {within} experts of {kept} groups, "
                f"found {chosen}."
            )

    def _check_turned(self) -> None:
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim % 2 or not self.rotary_dim:
            raise UserError(
                f"config.json: partial_rotary_factor: expected a share of a head's {self.head_dim} numbers that are "
                f"turned in pairs, found {self.partial_rotary_factor}."
            )

    def _restored(self, written: dict[str, Any]) -> dict[str, Any]:
        restored, read = super()._restored(written), getattr(self, "_read", None)
        if read is None:
            return restored
        kept = {key: value for key, value in restored.items() if key in read or key in ("dtype", "architectures")}
        return kept | self._changed(read)
