"""The shape of a model with experts: LLaDA-MoE's and LLaDA2's layouts. Loads no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from stabledllm.errors import UserError
from stabledllm.models.block_layouts import LLADA2
from stabledllm.models.shape import Shape

_MLP = ("gate", "up", "down")


@dataclass(frozen=True)
class MoEShape(Shape):
    """A transformer whose first layers have an MLP of width ``hidden`` and the others experts.

    Every expert's weights are held and trained; a token goes through its chosen experts and the shared one only.
    """

    experts: int = 0
    chosen: int = 0
    """Experts of a token."""
    expert_hidden: int = 0
    shared_hidden: int = 0
    """Hidden width of the shared expert; 0: none."""
    dense_layers: int = 0
    """Layers without experts."""
    fused_qkv: bool = False
    """One projection for queries, keys and values."""
    trained_router: bool = False
    """The router is a linear layer, which adapters on all linear layers are put on too."""

    @property
    def dense(self) -> Shape:
        """The shape of the layers without experts."""
        return Shape(**{field.name: getattr(self, field.name) for field in fields(Shape)})

    @property
    def active_hidden(self) -> int:
        """The hidden width that a token goes through in a layer with experts."""
        return self.shared_hidden + self.chosen * self.expert_hidden

    @property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers

    @property
    def attention(self) -> dict[str, tuple[int, int]]:
        """(input, output) width of each linear layer of a layer's attention, by its role."""
        D, Q, K = self.width, self.query_width, self.kv_width
        if self.fused_qkv:
            return {"qkv": (D, Q + 2 * K), "out": (Q, D)}
        return {"q": (D, Q), "k": (D, K), "v": (D, K), "out": (Q, D)}

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Numbers that each role of linear layers reads and writes per token in a layer with experts."""
        D, F = self.width, self.active_hidden
        reads = D * (self.chosen + bool(self.shared_hidden))
        return self.attention | {"gate": (reads, F), "up": (reads, F), "down": (F, reads)}

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers of a layer with experts, all experts included; the router not."""
        mlp = 3 * self.width * (self.shared_hidden + self.experts * self.expert_hidden)
        return sum(a * b for a, b in self.attention.values()) + mlp

    @property
    def layer_parameters(self) -> int:
        """Parameters of a layer with experts; a bias that only chooses is none."""
        return self.linear_parameters + self.experts * self.width + self._norms

    @property
    def parameters(self) -> int:
        """All parameters, exactly."""
        layers = self.dense_layers * self._dense_parameters + self.expert_layers * self.layer_parameters
        return layers + self.embedding_parameters + self.width

    @property
    def linear_in_all(self) -> int:
        """Weights of all layers' linear layers: what a 4-bit base stores in 4 bits."""
        dense = self._dense_parameters - self._norms
        router = self.experts * self.width * self.trained_router
        return self.dense_layers * dense + self.expert_layers * (self.linear_parameters + router)

    def lora_parameters(self, rank: int, target_modules: list[str] | str) -> int:
        """Parameters of rank-r adapters on the named linear layers, on those of every expert that they name.

        Raises:
            UserError: a name that is no linear layer.
        """
        D, every = self.width, target_modules == "all-linear"
        roles = self.targets(target_modules)
        attention = sum(a + b for role, (a, b) in self.attention.items() if role in roles)
        kinds = {kind: [role for role in _MLP if self._adapts(role, kind, target_modules)] for kind in _PLACES}
        dense = len(kinds["dense"]) * (D + self.hidden)
        routed = self.experts * len(kinds["experts"]) * (D + self.expert_hidden)
        shared = len(kinds["shared"]) * (D + self.shared_hidden) if self.shared_hidden else 0
        router = D + self.experts if self.trained_router and every else 0
        numbers = self.layers * attention + self.dense_layers * dense + self.expert_layers * (routed + shared + router)
        return rank * numbers

    def _adapts(self, role: str, kind: str, target_modules: list[str] | str) -> bool:
        """Whether adapters are put on a role's layers in dense MLPs, in experts or in the shared one."""
        full = _PLACES[kind].format(role)
        return target_modules == "all-linear" or any(f".{full}".endswith(f".{name}") for name in target_modules)

    @property
    def _norms(self) -> int:
        return 2 * self.width + 2 * self.head_dim * self.head_norms

    @property
    def _dense_parameters(self) -> int:
        return sum(a * b for a, b in self.attention.values()) + 3 * self.width * self.hidden + self._norms


_PLACES = {
    "dense": "layers.0.mlp.{}_proj",
    "experts": "layers.1.mlp.experts.0.{}_proj",
    "shared": "layers.1.mlp.shared_experts.{}_proj",
}
"""An example of the full names of the layers of each kind of MLP; a target is the end of such a name."""


def read_moe_shape(config: Mapping, where: str) -> MoEShape:
    """The shape that the config.json of a LLaDA-MoE or a LLaDA2 describes.

    Raises:
        UserError: a missing size, one that is no whole number of at least 1, or layers of unknown kinds.
    """
    kind, names = str(config.get("model_type")), _LLADA2 if config.get("model_type") == LLADA2 else _LLADA_MOE
    for field, name in names.items():
        value, least = config.get(name), 0 if field in ("shared", "dense_layers") else 1
        if value is None and field in _OPTIONAL:
            continue
        if value is None:
            raise UserError(f"{where}: expected the key '{name}' of a {kind} with experts, found none.")
        if field != "tied" and (type(value) is not int or value < least):
            raise UserError(f"{where}: {name}: expected a whole number of at least {least}, found {value!r}.")
    sizes = {field: config[name] for field, name in names.items() if config.get(name) is not None}
    sizes.setdefault("kv_heads", sizes["heads"])
    shared = sizes.pop("shared", 0)
    if kind == LLADA2:
        sizes["shared_hidden"] = shared * sizes["expert_hidden"]
        sizes["dense_layers"] = min(sizes.get("dense_layers", 0), sizes["layers"])
        return MoEShape(kind, **sizes, head_norms=True, fused_qkv=True)
    dense = _dense_layers(config.get("moe_layer_freq"), sizes["layers"], where)
    return MoEShape("lladamoe", **sizes, shared_hidden=shared, dense_layers=dense, head_norms=True, trained_router=True)


def _dense_layers(routed: object, layers: int, where: str) -> int:
    """How many layers have no experts, from LLaDA-MoE's list of those that have (1) and have not (0)."""
    if routed is None:
        return 0
    if not isinstance(routed, list) or len(routed) < layers or any(type(layer) is not int for layer in routed):
        raise UserError(
            f"{where}: moe_layer_freq: expected a list of 0 and 1, one for each of the {layers} layers, "
            f"found {routed!r}."
        )
    return routed[:layers].count(0)


_OPTIONAL = {"kv_heads", "head_dim", "shared", "dense_layers", "tied"}
_COMMON = {
    "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "vocabulary": "vocab_size", "experts": "num_experts",
    "chosen": "num_experts_per_tok", "tied": "tie_word_embeddings",
}  # fmt: skip
_LLADA2 = _COMMON | {
    "hidden": "intermediate_size", "head_dim": "head_dim", "expert_hidden": "moe_intermediate_size",
    "shared": "num_shared_experts", "dense_layers": "first_k_dense_replace",
}  # fmt: skip
_LLADA_MOE = _COMMON | {
    "hidden": "dense_intermediate_size", "expert_hidden": "expert_intermediate_size",
    "shared": "shared_expert_intermediate_size",
}  # fmt: skip
LLADA2_MINI = MoEShape(
    LLADA2, layers=20, width=2048, heads=16, kv_heads=4, hidden=5120, vocabulary=157184, head_dim=128, head_norms=True,
    experts=256, chosen=8, expert_hidden=512, shared_hidden=512, dense_layers=1, fused_qkv=True,
)  # fmt: skip
LLADA2_FLASH = MoEShape(
    LLADA2, layers=32, width=4096, heads=32, kv_heads=4, hidden=9216, vocabulary=157184, head_dim=128, head_norms=True,
    experts=256, chosen=8, expert_hidden=1024, shared_hidden=1024, dense_layers=1, fused_qkv=True,
)  # fmt: skip
LLADA_MOE = MoEShape(
    "lladamoe", layers=16, width=2048, heads=16, kv_heads=16, hidden=8192, vocabulary=157184, head_norms=True,
    experts=64, chosen=8, expert_hidden=1024, trained_router=True,
)  # fmt: skip
PUBLISHED_MOE = {
    **{f"inclusionAI/LLaDA2.{minor}-mini{end}": LLADA2_MINI for minor in "01" for end in ("", "-preview", "-CAP")},
    **{f"inclusionAI/LLaDA2.{minor}-flash{end}": LLADA2_FLASH for minor in "01" for end in ("", "-preview", "-CAP")},
    "inclusionAI/LLaDA-MoE-7B-A1B-Base": LLADA_MOE,
    "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": LLADA_MOE,
}
"""Shapes as their hub pages' config.json state them."""
