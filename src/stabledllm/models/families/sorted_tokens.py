"""Tokens sorted by expert: taken there, gated and added up again, in few passes over memory and the same in every run.

Small experts spend most of their time outside of matrix products, so each step here reads and writes its rows once in
either direction. Products of rows and shares are never held, only what they are made of.

Legend: T tokens, D width, H hidden width, K experts of a token, S = T x K tokens sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SortedTokens:
    """The order of the tokens of one forward when they are sorted by expert."""

    order_S: Tensor
    """Which of the choices, counted token by token, stands at each place."""
    token_S: Tensor
    """Whose choice it is."""
    place_TK: Tensor
    """At which place each choice stands."""
    expert_S: Tensor
    ends_E: Tensor
    """Where each expert's tokens end (int32)."""

    @classmethod
    def of(cls, chosen_TK: Tensor, experts: int) -> SortedTokens:
        """Sort the choices (T, K) by expert, those of one expert by token."""
        expert_S, order_S = chosen_TK.flatten().sort(stable=True)
        place_S = torch.empty_like(order_S)
        place_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        numbers = torch.arange(experts, device=expert_S.device)
        ends_E = torch.searchsorted(expert_S, numbers, right=True, out_int32=True)
        return cls(order_S, order_S // chosen_TK.shape[1], place_S.view_as(chosen_TK), expert_S, ends_E)

    @property
    def counts(self) -> list[int]:
        """How many tokens each expert has."""
        return self.ends_E.diff(prepend=self.ends_E.new_zeros(1)).tolist()

    def taken(self, x_TD: Tensor) -> Tensor:
        """Each token's row for every expert that it chose, (S, D)."""
        return _Taken.apply(x_TD, self.token_S, self.place_TK)

    def combined(self, out_SD: Tensor, share_TK: Tensor) -> Tensor:
        """Each token's sum of its experts' outputs times their shares, (T, D), in the wider precision of the two."""
        return _Combined.apply(out_SD, share_TK, self.place_TK, self.token_S, self.order_S)


def gated(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of rows with a gate and the equally wide values beside it, (S, 2 H) to (S, H)."""
    return _Gated.apply(gate_up)


def _summed(rows: Tensor, index_TK: Tensor, factor_TK: Tensor | None = None) -> Tensor:
    """The sum of K rows, times factors, for each token, in a fixed order and without a copy of the rows."""
    return F.embedding_bag(index_TK, rows.contiguous(), mode="sum", per_sample_weights=factor_TK)


class _Taken(torch.autograd.Function):
    """Indexing whose backward pass sums in a fixed order, where torch's own scatters."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, token_S: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, token_S)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_SD: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return _summed(gradient_SD, place_TK), None, None


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out_SD: Tensor, share_TK: Tensor, place_TK: Tensor, token_S: Tensor, order_S: Tensor) -> Tensor:
        ctx.save_for_backward(out_SD, share_TK, place_TK, token_S, order_S)
        dtype = torch.promote_types(out_SD.dtype, share_TK.dtype)
        return _summed(out_SD.to(dtype), place_TK, share_TK.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_TD: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        out_SD, share_TK, place_TK, token_S, order_S = ctx.saved_tensors
        gradient_SD = gradient_TD.index_select(0, token_S)
        of_share = None  # where nobody asks, as beside a frozen router that shares alone depend on
        if ctx.needs_input_grad[1]:
            of_share = (gradient_SD * out_SD).sum(1)[place_TK].to(share_TK.dtype)
        share_S = share_TK.flatten()[order_S, None]
        return gradient_SD.mul_(share_S).to(out_SD.dtype), of_share, None, None, None


class _Gated(torch.autograd.Function):
    """Keeps its input alone, and makes the gate's value again, the same to the last bit."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=1)
        both = torch.empty_like(gate_up)
        of_gate, of_up = both.chunk(2, dim=1)
        torch.mul(gradient, F.silu(gate), out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return both
