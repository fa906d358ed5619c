"""A mixture of experts: each token's chosen ones, weighed and added up.

Tokens are sorted by expert once. Where torch has a grouped matrix product, two of them serve all experts; elsewhere
(float64, adapters on experts, sharded or quantised weights) each expert takes its segment. Both give the same results
to rounding.

Legend: T tokens, D width, E experts, K experts of a token, S = T x K tokens sorted by expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabledllm.models.families.grouped import as_one, can_group, grouped_linear, lay_together, lie_together, taken

_SIDES = (("gate_proj", "up_proj"), ("down_proj",))
"""The layers of an expert that one product computes, in the order in which their weights lie in memory."""


class GatedMLP(nn.Module):
    """The MLP ``down(silu(gate x) * up x)`` of a dense layer, of an expert or of the shared expert."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


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
        """Lay the experts' weights together in memory; needed after their parameters were replaced."""
        for side in _SIDES:
            if weights := self._plain_weights(side):
                lay_together(weights)

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
        count = chosen_TK.shape[1]
        sorted_S, order_S = chosen_TK.flatten().sort(stable=True)
        place_S = torch.empty_like(order_S)
        place_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        numbers = torch.arange(len(self), device=sorted_S.device)
        ends_E = torch.searchsorted(sorted_S, numbers, right=True, out_int32=True)
        x_SD = taken(x_TD, order_S // count, place_S.view(-1, count))
        weights = self.grouped(x_SD)
        out_SD = _grouped(x_SD, ends_E, weights) if weights else self._in_segments(x_SD, sorted_S, ends_E)
        out_TKD = taken(out_SD, place_S, order_S[:, None]).view(*chosen_TK.shape, -1)
        return (out_TKD * share_TK[..., None]).sum(1).to(x_TD.dtype)

    def grouped(self, x: Tensor) -> list[list[nn.Parameter]] | None:
        """The weights of both products where each serves all experts; None where each expert takes its own segment."""
        if not can_group(_computed_in(x), x.device, self.widths):
            return None
        return self._joined()

    def _joined(self) -> list[list[nn.Parameter]] | None:
        """The weights of both products where those of each lie together in memory."""
        weights = [self._plain_weights(side) for side in _SIDES]
        return weights if all(part and lie_together(part) for part in weights) else None

    def _plain_weights(self, side: tuple[str, ...]) -> list[nn.Parameter] | None:
        """The weights of these layers, expert by expert; None where one was replaced, as by an adapter."""
        # Called in every forward pass, and hence past nn.Module's slow access to attributes.
        layers = [expert._modules[name] for expert in self._modules.values() for name in side]
        return [layer._parameters["weight"] for layer in layers] if all(type(x) is nn.Linear for x in layers) else None

    def _in_segments(self, x_SD: Tensor, sorted_S: Tensor, ends_E: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # where no size may be read from a tensor
            return torch.cat([expert(x_SD[(sorted_S == i).nonzero()[:, 0]]) for i, expert in enumerate(self)])
        parts = zip(self, x_SD.split(ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()), strict=True)
        return torch.cat([expert(part) for expert, part in parts if len(part) or torch.is_grad_enabled()])


def _grouped(x_SD: Tensor, ends_E: Tensor, weights: list[list[nn.Parameter]]) -> Tensor:
    dtype, (first, second) = _computed_in(x_SD), weights
    gate_up = as_one(first).view(len(ends_E), -1, x_SD.shape[1]).to(dtype)
    gate, up = grouped_linear(x_SD.to(dtype), gate_up, ends_E).chunk(2, dim=1)
    return grouped_linear(nn.functional.silu(gate) * up, as_one(second).to(dtype), ends_E)


def _computed_in(x: Tensor) -> torch.dtype:
    """The precision of products: autocast's where it is on, which knows nothing of the grouped one."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
