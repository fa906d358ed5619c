"""A mixture of experts: each token's chosen ones, weighed and added up.

Tokens are sorted by expert once. Where torch has a grouped matrix product, three of them serve all experts; elsewhere
(float64, adapters on experts, sharded or quantised weights) each expert takes its segment. Both give the same results
to rounding.

Legend: T tokens, D width, E experts, K experts of a token, S = T x K tokens sorted by expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabledllm.models.families.grouped import as_one, can_group, grouped_linear, lay_together, lie_together, taken

_SIDES = ("gate_proj", "up_proj", "down_proj")


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
            lay_together(self._weights(side))

    def _apply(self, fn, recurse: bool = True):
        # What moves or casts a model gives every parameter memory of its own.
        super()._apply(fn, recurse)
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
        out_SD = self._grouped(x_SD, ends_E) if self.grouped(x_SD) else self._in_segments(x_SD, ends_E)
        out_TKD = taken(out_SD, place_S, order_S[:, None]).view(*chosen_TK.shape, -1)
        return (out_TKD * share_TK[..., None]).sum(1).to(x_TD.dtype)

    def grouped(self, x: Tensor) -> bool:
        """Whether all experts are computed in one grouped product; else each takes its own segment of the tokens."""
        return can_group(_computed_in(x), x.device, self.widths) and all(
            all(type(getattr(expert, side)) is nn.Linear for expert in self) and lie_together(self._weights(side))
            for side in _SIDES
        )

    def _weights(self, side: str) -> list[nn.Parameter]:
        return [getattr(expert, side).weight for expert in self]

    def _grouped(self, x_SD: Tensor, ends_E: Tensor) -> Tensor:
        dtype = _computed_in(x_SD)
        gate, up, down = (as_one(self._weights(side)).to(dtype) for side in _SIDES)
        x_SD = x_SD.to(dtype)
        inner = nn.functional.silu(grouped_linear(x_SD, gate, ends_E)) * grouped_linear(x_SD, up, ends_E)
        return grouped_linear(inner, down, ends_E)

    def _in_segments(self, x_SD: Tensor, ends_E: Tensor) -> Tensor:
        sizes = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        parts = zip(self, x_SD.split(sizes), strict=True)
        return torch.cat([expert(part) for expert, part in parts if len(part) or torch.is_grad_enabled()])


def _computed_in(x: Tensor) -> torch.dtype:
    """The precision of products: autocast's where it is on, which knows nothing of the grouped one."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
