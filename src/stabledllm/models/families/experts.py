"""A mixture of experts: each token's chosen ones, weighed and added up.

Tokens are sorted by expert once. Where torch has a grouped matrix product, two of them serve all experts, and two more
each layer with adapters; elsewhere (float64, sharded or quantised weights) each expert takes its segment. Both give
the same results to rounding.

Legend: T tokens, D width, E experts, K experts of a token, S = T x K tokens sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn

from stabledllm.models.families.expert_layers import ExpertLayer, LowRank, expert_layer
from stabledllm.models.families.grouped import as_one, can_group, grouped_linear, lay_together, lie_together
from stabledllm.models.families.sorted_tokens import SortedTokens, gated

_LAYERS = ("gate_proj", "up_proj", "down_proj")


class GatedMLP(nn.Module):
    """The MLP ``down(silu(gate x) * up x)`` of a dense layer, of an expert or of the shared expert."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class Grouped:
    """The layers of all experts as grouped products see them."""

    gate: ExpertLayer
    up: ExpertLayer
    down: ExpertLayer

    @property
    def sides(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights of the two products: gate and up of each expert in turns, and down."""
        pairs = zip(self.gate.weights, self.up.weights, strict=True)
        return [weight for pair in pairs for weight in pair], self.down.weights

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters that must lie together in memory, list by list."""
        return [*self.sides, *(group for layer in (self.gate, self.up, self.down) for group in layer.groups)]

    @property
    def adapters(self) -> list[LowRank]:
        """Those of the layers that have some."""
        return [layer.adapters for layer in (self.gate, self.up, self.down) if layer.adapters]

    def __call__(self, x_SD: Tensor, ends_E: Tensor) -> Tensor:
        """Each expert's output for its tokens, (S, D)."""
        dtype, mixed = _computed_in(x_SD), _autocast(x_SD)
        first, second = self.sides
        weight = as_one(first).view(len(ends_E), -1, x_SD.shape[1])
        gate_up = grouped_linear(x_SD.to(dtype), weight.to(dtype), ends_E)
        if self.gate.adapters or self.up.adapters:
            halves = zip(gate_up.chunk(2, dim=1), (self.gate.adapters, self.up.adapters), strict=True)
            parts = [half + own(x_SD, ends_E, mixed) if own else half for half, own in halves]
            gate_up = torch.cat([part.to(dtype) for part in parts], dim=1)
        hidden = gated(gate_up)
        out_SD = grouped_linear(hidden, as_one(second).to(dtype), ends_E)
        return (out_SD + self.down.adapters(hidden, ends_E, mixed)).to(dtype) if self.down.adapters else out_SD


class Experts(nn.ModuleList):
    """Gated MLPs of one size, numbered as in the hub's checkpoints, that each take the tokens they are chosen for.

    Every weight gets a gradient in every backward pass, even of an expert that no token chose, so that all ranks
    exchange the same ones.
    """

    mixes_rows = True
    """An expert gets the tokens of many rows in one list, so its gradients do not come row by row."""

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__(GatedMLP(width, hidden) for _ in range(count))
        self.widths = (width, hidden)
        self.join()

    def join(self) -> None:
        """Lay the experts' weights together in memory, and their adapters'; needed after parameters were replaced."""
        if layers := self._layers():
            for group in layers.groups:
                lay_together(group)

    def _apply(self, fn, recurse: bool = True):
        # What moves or casts a model gives every parameter memory of its own. Where they did not lie together before,
        # another library has laid them out, and may rely on it.
        together = self._joined()
        super()._apply(fn, recurse)
        if together:
            self.join()
        return self

    def forward(self, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
        """The sum of each token's chosen experts' outputs times their shares, (T, D)."""
        tokens = SortedTokens.of(chosen_TK, len(self))
        x_SD = tokens.taken(x_TD)
        grouped = self.grouped(x_SD)
        out_SD = grouped(x_SD, tokens.ends_E) if grouped else self._in_segments(x_SD, tokens)
        return tokens.combined(out_SD, share_TK).to(x_TD.dtype)

    def grouped(self, x: Tensor) -> Grouped | None:
        """The layers where grouped products serve all experts; None where each expert takes its own segment."""
        if not can_group(_computed_in(x), x.device, self.widths):
            return None
        layers = self._joined()
        for adapters in layers.adapters if layers else ():
            if not can_group(_autocast(x) or adapters.down[0].dtype, x.device, [adapters.rank]):
                return None
        return layers

    def _joined(self) -> Grouped | None:
        """The layers, where the parameters of each product lie together in memory."""
        layers = self._layers()
        return layers if layers and all(map(lie_together, layers.groups)) else None

    def _layers(self) -> Grouped | None:
        """The layers of all experts; None where one was replaced by what is not grouped."""
        # Called in every forward pass, and hence past nn.Module's slow access to attributes.
        experts = [expert._modules for expert in self._modules.values()]
        layers = [expert_layer(list(map(itemgetter(name), experts))) for name in _LAYERS]
        return Grouped(*layers) if all(layers) else None

    def _in_segments(self, x_SD: Tensor, tokens: SortedTokens) -> Tensor:
        if torch.compiler.is_compiling():  # where no size may be read from a tensor
            return torch.cat([expert(x_SD[(tokens.expert_S == i).nonzero()[:, 0]]) for i, expert in enumerate(self)])
        parts = zip(self, x_SD.split(tokens.counts), strict=True)
        return torch.cat([expert(part) for expert, part in parts if len(part) or torch.is_grad_enabled()])


def join_experts(model: nn.Module) -> None:
    """Lay the weights of each layer of experts together in memory, wherever the model has some."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.join()


def _computed_in(x: Tensor) -> torch.dtype:
    """The precision of products: autocast's where it is on, which knows nothing of the grouped one."""
    return _autocast(x) or x.dtype


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
