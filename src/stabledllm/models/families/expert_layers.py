"""One layer of all experts: their weights as one product sees them, and the low-rank adapters beside them.

peft puts an adapter beside each expert's layer, thousands of small matrices. Where all experts have the same, the
adapters' products are grouped as the weights' are; parameters, names and files stay peft's.

Legend: E experts, S tokens sorted by expert, A and B widths of a layer's input and output, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stabledllm.models.families.grouped import as_one, grouped_linear


@dataclass(frozen=True)
class LowRank:
    """The adapters of one layer of all experts: ``scale * up(down(dropout x))`` is added to the layer's output."""

    down: list[nn.Parameter]
    up: list[nn.Parameter]
    scale: float
    dropout: nn.Module

    @property
    def rank(self) -> int:
        return self.down[0].shape[0]

    def __call__(self, x_SA: Tensor, ends_E: Tensor, dtype: torch.dtype | None) -> Tensor:
        """What is added, (S, B).

        Args:
            dtype: of the products; None: that of the adapters.
        """
        dtype = dtype or self.down[0].dtype
        low_SR = grouped_linear(self.dropout(x_SA.to(dtype)), as_one(self.down).to(dtype), ends_E)
        # Scaled where rows are narrow, which saves a pass over wide ones.
        return grouped_linear(low_SR * self.scale, as_one(self.up).to(dtype), ends_E)


@dataclass(frozen=True)
class ExpertLayer:
    """One layer of all experts, expert by expert."""

    weights: list[nn.Parameter]
    adapters: LowRank | None = None

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """The adapters' parameters, each list of which one product takes."""
        return [self.adapters.down, self.adapters.up] if self.adapters else []


def expert_layer(layers: Sequence[nn.Module]) -> ExpertLayer | None:
    """The same layer of every expert; None where one is neither linear nor linear with a plain adapter as all have."""
    if set(map(type, layers)) == {nn.Linear}:
        return ExpertLayer([layer._parameters["weight"] for layer in layers])
    if any("lora_A" not in layer._modules for layer in layers):
        return None
    found = [_with_adapter(layer) for layer in layers]
    if any(one is None for one in found):
        return None
    weights = [base for base, _ in found]
    adapters = [adapter for _, adapter in found]
    if not any(adapters):
        return ExpertLayer(weights)
    if not all(adapters) or len({(a.scale, a.rank) for a in adapters}) > 1:
        return None
    first, down, up = adapters[0], [a.down[0] for a in adapters], [a.up[0] for a in adapters]
    return ExpertLayer(weights, LowRank(down, up, first.scale, first.dropout))


def _with_adapter(layer: nn.Module) -> tuple[nn.Parameter, LowRank | None] | None:
    """A layer's weight and its one adapter, None where it is switched off; None for what does more than add one."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or layer.merged:
        return None
    weight, names = layer.base_layer.weight, layer.active_adapters
    if layer.disable_adapters:
        return weight, None
    if len(names) != 1 or layer.lora_variant or layer.lora_bias[names[0]] or layer.fan_in_fan_out:
        return None
    down, up = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    return weight, LowRank([down], [up], layer.scaling[names[0]], layer.lora_dropout[names[0]])
