"""Gradients of whole rows in blocks at nested draws of t and of masks: what the blocks of a row have in common.

Legend: a rows, b rates of each, c masks at each rate, n = b c points of a row, m blocks of a row, Q blocks of
coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.gradient.blocks import BlockRowGradients, ProjectedBlockGradients
from stabledllm.gradient.components import PairMean
from stabledllm.gradient.profile import GradientProfile, profile_at
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.variance.some_masked import SomeMasked

_STEP = 0xB10C_64AD
MASKS = 2
"""Masks at each rate: products of different masks are all that is asked of them."""


@dataclass(frozen=True)
class NestedRows:
    """Gradients of rows at iid rates, :data:`MASKS` masks at each.

    Squared means are means of products of different masks, of the same rate or of different ones, and so unbiased.

    >>> from stabledllm.gradient.example import example_profile
    >>> whole = example_profile("standard")
    >>> whole.gram.shape[-1] % MASKS
    0
    >>> NestedRows(whole).of_rows.shape
    torch.Size([1, 4])
    """

    profile: GradientProfile
    """Points in one cell of t, MASKS to a rate; where every block has a t of its own, ``t`` is (a, n, m)."""

    @property
    def square(self) -> Tensor:
        """E |g|² of each row, shape (Q, a)."""
        return self.profile.squares().mean(-1)

    @property
    def at_rates(self) -> Tensor:
        """E_t |E_M g|² of each row, shape (Q, a)."""
        return self._mean_of(self._same_rate & ~torch.eye(len(self._same_rate), dtype=torch.bool))

    @cached_property
    def of_rows(self) -> Tensor:
        """|E g|² of each row, shape (Q, a)."""
        return self._mean_of(~self._same_rate)

    @property
    def rate_noise(self) -> Tensor:
        """B of each row under these rates, shape (Q, a)."""
        return self.at_rates - self.of_rows

    def data_noise(self, keep: Tensor) -> Tensor:
        """C from the rows ``keep``, all or all but one, by block of coordinates, shape (Q,)."""
        return self.of_rows[:, keep].mean(1) - self.pairs(keep) + self.pairs.spread_change(keep)

    @cached_property
    def pairs(self) -> PairMean:
        """The squared norm of the mean gradient, from different rows."""
        return PairMean(self.profile)

    @property
    def _same_rate(self) -> Tensor:
        rate = torch.arange(self.profile.gram.shape[-1]) // MASKS
        return rate[:, None] == rate

    def _mean_of(self, pairs: Tensor) -> Tensor:
        return self.profile.gram[..., pairs].mean(-1)


def nested_rows(
    meter: BlockRowGradients | ProjectedBlockGradients,
    method: Method,
    *,
    rows: int,
    rates: int,
    seed: int,
    one_t: bool,
    hidden: bool = True,
) -> NestedRows:
    """Measure gradients of ``rows`` distinct rows at ``rates`` iid rates, under independent masks of single views.

    Args:
        one_t: one t for all blocks of a row, instead of a t of its own for each.
        hidden: whether masks are drawn given that they hide a token of the block, which changes no mean of products of
            different masks as long as blocks do not see each other's noise.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter = example_meter(BlockRowGradients, block_size=2)
    >>> nested_rows(meter, Method(), rows=4, rates=2, seed=0, one_t=False).square.shape
    torch.Size([1, 4])
    """
    key = Key(seed, _STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    a, blocks = len(chosen), 1 if one_t else meter.ratios_per_row
    u = key.row_uniforms(Stream.RATE, torch.arange(a * rates * blocks)).view(a, rates, blocks)
    t = u.repeat_interleave(MASKS, dim=1)
    edges, cell = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(t.shape[1], dtype=torch.int64)
    drawing = replace(method, masker=SomeMasked()) if hidden else method
    size = meter.sizes(method)[chosen]
    return NestedRows(profile_at(meter, drawing, key, chosen, size, edges, cell, t[..., 0] if one_t else t))
