"""Keys and values kept from one forward to the next, so that a forward goes over some positions only.

Legend: N rows, L positions, Q positions that a forward computes, H key heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.errors import UserError


class KeyValueCache:
    """Each layer's keys and values at all L positions of a batch, (N, H, L, D).

    A forward with the cache computes ``positions`` alone, replaces their keys and values and attends to all. Computing
    all gives the same as no cache; computing fewer leaves the other keys and values as last computed, which is exact
    only where these cannot have changed. L may differ from one forward to the next: what is cut off is forgotten. A
    position that was never computed has keys and values of 0: the attention mask must hide it.
    """

    def __init__(self):
        self.positions: Tensor | None = None
        """The positions that the next forward computes, int64, (N, Q), as many in every row; None for all."""
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._length = 0

    def enter(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor | None, back_end: str):
        """Ids and position ids of the computed positions, each (N, Q), from those of all, (N, L).

        Raises:
            UserError: packed rows, or flash attention, which needs as many queries as keys here.
        """
        if segment_ids is not None:
            raise UserError("decoding.cache: expected rows that are not packed, found segments.")
        if back_end.startswith("flash"):
            raise UserError(f"decoding.cache: expected attention 'sdpa' or 'eager', found '{back_end}'.")
        self._length = input_ids.shape[1]
        return self.computed(input_ids), self.computed(position_ids.expand_as(input_ids))

    def computed(self, value_NL: Tensor) -> Tensor:
        """The entries of the computed positions, (N, Q, ...), in a tensor of all positions, (N, L, ...)."""
        if self.positions is None:
            return value_NL
        return value_NL[torch.arange(len(value_NL), device=value_NL.device)[:, None], self.positions]

    def queries(self, allowed: Tensor | None) -> Tensor | None:
        """The computed positions' rows, (N, 1, Q, L), of an attention mask, (N, 1, L or 1, L); one row serves all."""
        if allowed is None or allowed.shape[2] == 1:
            return allowed
        return self.computed(allowed[:, 0])[:, None]

    def spread(self, hidden_NQD: Tensor, length: int) -> Tensor:
        """Hidden states put at their positions among all, (N, L, D); NaN where none was computed."""
        if self.positions is None:
            return hidden_NQD
        n, _, width = hidden_NQD.shape
        index = self.positions[..., None].expand_as(hidden_NQD)
        return hidden_NQD.new_full((n, length, width), torch.nan).scatter_(1, index, hidden_NQD)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values at the computed positions and return those at all; called by the layers."""
        if self.positions is not None:
            index, stored = self.positions[:, None, :, None].expand_as(keys), self._stored.get(layer, (None, None))
            keys, values = (
                self._fitted(old, new).scatter_(2, index, new) for old, new in zip(stored, (keys, values), strict=True)
            )
        self._stored[layer] = keys, values
        return keys, values

    def _fitted(self, stored: Tensor | None, like: Tensor) -> Tensor:
        """What is stored, cut to the L of this forward or with zeros up to there."""
        n, heads, _, width = like.shape
        missing = self._length - (0 if stored is None else stored.shape[2])
        if missing <= 0:
            return stored[:, :, : self._length]
        zeros = like.new_zeros(n, heads, missing, width)
        return zeros if stored is None else torch.cat((stored, zeros), dim=2)

    def keep(self, rows: Tensor, width: int) -> None:
        """Keep only these rows, bool (N,), and at most their first ``width`` positions."""
        self._stored = {layer: (k[rows, :, :width], v[rows, :, :width]) for layer, (k, v) in self._stored.items()}
