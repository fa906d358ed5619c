"""The shape of a model without its weights, from which parameter counts and memory follow. Loads no framework."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.errors import UserError, did_you_mean
from stabledllm.models.block_layouts import BLOCK_LAYOUTS

CAUSAL = {"llama", "qwen2", "qwen3", "mistral"}
"""Model types of autoregressive models; ``Dream`` and ``llada`` have the same blocks without the causal mask."""


@dataclass(frozen=True)
class Shape:
    """A pre-norm transformer with rotary attention (grouped heads) and a gated MLP.

    Legend of the sizes: D width, F hidden width of the MLP, V vocabulary.
    """

    model_type: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    head_dim: int = 0
    """Width of a head; ``width / heads`` unless given."""
    tied: bool = False
    """The output layer is the embedding."""
    qkv_bias: bool = False
    head_norms: bool = False
    """RMSNorm on every query and key head (Qwen3)."""
    fused: bool = False
    """One projection for queries, keys and values, and one for gate and up (TinyMDM)."""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.width // self.heads)

    @property
    def causal(self) -> bool:
        """Whether it is an autoregressive model."""
        return self.model_type in CAUSAL

    @property
    def in_blocks(self) -> bool:
        """Whether it is of a layout that is trained in blocks and in nothing else."""
        return self.model_type in BLOCK_LAYOUTS

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads."""
        return self.kv_heads * self.head_dim

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(input, output) width of each linear layer of a block, by its role."""
        D, F, Q, K = self.width, self.hidden, self.query_width, self.kv_width
        if self.fused:
            return {"qkv": (D, Q + 2 * K), "out": (Q, D), "gate_up": (D, 2 * F), "down": (F, D)}
        return {"q": (D, Q), "k": (D, K), "v": (D, K), "out": (Q, D), "gate": (D, F), "up": (D, F), "down": (F, D)}

    @property
    def linear_parameters(self) -> int:
        """Weights of a block's linear layers."""
        return sum(a * b for a, b in self.linear_layers().values())

    @property
    def linear_in_all(self) -> int:
        """Weights of all blocks' linear layers: what a 4-bit base stores in 4 bits."""
        return self.layers * self.linear_parameters

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block."""
        biases = (self.query_width + 2 * self.kv_width) * self.qkv_bias
        norms = 2 * self.width + 2 * self.head_dim * self.head_norms
        return self.linear_parameters + biases + norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the output layer where it is another matrix."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters, exactly."""
        return self.layers * self.layer_parameters + self.embedding_parameters + self.width

    def lora_parameters(self, rank: int, target_modules: list[str] | str) -> int:
        """Parameters of rank-r adapters on the named linear layers (``all-linear``: all but the output layer).

        Raises:
            UserError: a name that is no linear layer of the block.
        """
        return self.layers * sum(rank * (a + b) for a, b in self.targets(target_modules).values())

    def targets(self, target_modules: list[str] | str) -> dict[str, tuple[int, int]]:
        """The linear layers of a block that adapters are put on, by their roles.

        Names of the embedding and the output layer are left to the loader, which knows the model: their adapters, a
        million parameters or two, are not counted.

        Raises:
            UserError: a name that is no linear layer of the block.
        """
        every = self.linear_layers()
        if target_modules == "all-linear":
            return every
        chosen = {}
        for name in target_modules:
            if name.rpartition(".")[2] in _OUTSIDE_BLOCKS:
                continue
            role = _ROLES.get(name.rpartition(".")[2])
            if role not in every:
                raise UserError(
                    f"key 'lora.target_modules': no linear layer '{name}' in a {self.model_type}"
                    f"{did_you_mean(name, [layer for layer, role in _ROLES.items() if role in every])}."
                )
            chosen[role] = every[role]
        return chosen


_OUTSIDE_BLOCKS = {"embed", "embed_tokens", "wte", "word_embeddings", "head", "lm_head"}
_ROLES = {
    "qkv_proj": "qkv", "query_key_value": "qkv", "q_proj": "q", "k_proj": "k", "v_proj": "v",
    "o_proj": "out", "attn_out": "out", "dense": "out",
    "gate_up_proj": "gate_up", "gate_proj": "gate", "ff_proj": "gate", "up_proj": "up",
    "down_proj": "down", "ff_out": "down",
}  # fmt: skip
"""Names of linear layers in the Llama, Qwen, Dream, LLaDA, LLaDA2 and TinyMDM layouts."""
