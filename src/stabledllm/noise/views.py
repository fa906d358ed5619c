"""The views of a row: how the uniforms behind its K masks depend on each other.

Only the joint law of the views differs; each view alone has the same law as the single view.

Legend: B rows, K views, L positions, P maskable tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import TSampler
from stabledllm.noise.schedule import Counts, largest_ratio, masked_count
from stabledllm.noise.streams import Key, Stream


@dataclass(frozen=True)
class Single:
    """One view per row, and the base of the other couplings.

    >>> Single().active(torch.tensor([0.2, 0.9])).tolist()
    [[True], [True]]
    """

    count = 1
    """The number of views K."""
    independent = True
    """Whether a row's masks are independent of each other given t."""

    @property
    def switches(self) -> tuple[float, ...]:
        """The mask ratios in (0, 1) at which the number of active views changes."""
        return ()

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        """One uniform per row, view and token, float64, shape (B, K, L)."""
        return key.token_uniforms(Stream.MASK, rows, token_index)[:, None]

    def ranks(self, uniforms: Tensor, maskable: Tensor) -> Tensor:
        """The rank of each maskable token in its view's random order, int64 from 0 to P - 1, shape (B, K, L).

        A fixed count masks the first k. Ranks of tokens that are not maskable mean nothing.
        """
        keyed = uniforms.masked_fill(~maskable[:, None], 2.0)
        order = keyed.argsort(dim=-1, stable=True)
        places = torch.arange(keyed.shape[-1], device=keyed.device).expand_as(order)
        return torch.empty_like(order).scatter_(-1, order, places)

    def active(self, t: Tensor, size: Tensor | None = None) -> Tensor:
        """Whether each view of each row goes through the model, bool, shape (B, K).

        Args:
            size: number P of maskable tokens of each row, shape (B,). Only ``complement`` reads it; without it a view
                is active if it is for a row of any length.
        """
        return torch.ones(len(t), self.count, dtype=torch.bool, device=t.device)

    def reach(self, size: Tensor) -> Tensor:
        """The mask ratio up to which each view of rows of ``size`` = P maskable tokens is active; float64, (B, K).

        It is 1 for a view that is always active. Expected forwards follow from it exactly.
        """
        return torch.ones(len(size), self.count, dtype=torch.float64, device=size.device)

    def cost(self, t: Tensor, size: Tensor | None = None) -> Tensor:
        """Forwards of a row at each t, the mean over rows of ``size`` = P maskable tokens; float64, shape of t.

        Args:
            size: int64, shape (B,); without it the result is the most that a row of any length takes.
        """
        flat = t.flatten()
        if size is None:
            return self.active(flat).sum(1).double().view_as(t)
        sizes, rows = size.unique(return_counts=True)
        forwards = [self.active(flat, p.expand_as(flat)).sum(1) * n for p, n in zip(sizes, rows, strict=True)]
        return (sum(forwards).double() / len(size)).view_as(t)

    def mean_forwards(self, sampler: TSampler, size: Tensor) -> float:
        """The exact mean number of forwards of a row.

        It is less than the number of views where a view is left out above some t (``mirror_below``) or where nothing
        is left for it to mask (``complement``). A view that masks nothing by chance is a forward all the same.

        Args:
            sampler: the density t is drawn from.
            size: maskable tokens P of each row of the data, shape (B,).
        """
        return float(sampler.cdf(self.reach(size)).sum(1).mean())


@dataclass(frozen=True)
class Mirror(Single):
    """MIRROR: two views that use u and 1 - u, so that their masks are complementary at p_mask = 1/2.

    Both views have the right marginal; corr(m1, m2) = -p / (1 - p) for p <= 1/2 and -(1 - p) / p
    above. With ``below`` the second view is left out for t >= below (the first then counts alone),
    which changes neither the mean of the loss nor the importance weight.

    Raises:
        UserError: for ``below`` outside (0, 1].

    >>> Mirror(below=0.5).active(torch.tensor([0.2, 0.9])).tolist()
    [[True, True], [True, False]]
    """

    below: float = 1.0
    count = 2
    independent = False

    def __post_init__(self) -> None:
        if not 0.0 < self.below <= 1.0:
            raise UserError(f"mirror: expected mirror_below in (0, 1], found {self.below:g}.")

    @property
    def switches(self) -> tuple[float, ...]:
        return (self.below,) if self.below < 1.0 else ()

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        u = key.token_uniforms(Stream.MASK, rows, token_index)
        return torch.stack((u, 1.0 - u), dim=1)

    def active(self, t: Tensor, size: Tensor | None = None) -> Tensor:
        second = (t < self.below) | (self.below >= 1.0)
        return torch.stack((torch.ones_like(second), second), dim=1)

    def reach(self, size: Tensor) -> Tensor:
        reach = super().reach(size)
        reach[:, 1] = self.below
        return reach


@dataclass(frozen=True)
class MultiSample(Single):
    """K independent masks at the same t (the paper's MultiSample-2 for K = 2).

    Raises:
        UserError: for fewer than 2 or more than 64 views.

    >>> MultiSample(3).active(torch.tensor([0.5])).tolist()
    [[True, True, True]]
    """

    count: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 64:
            raise UserError(f"multisample: expected 2 to 64 views, found {self.count}.")

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        sets = [key.token_uniforms(Stream.MASK, rows, token_index, view=k) for k in range(self.count)]
        return torch.stack(sets, dim=1)


@dataclass(frozen=True)
class Partition(Single):
    """K masks at the same t that overlap as little as K masks can: MIRROR's generalisation to K > 2.

    Every view has the right marginal. The masks are disjoint while K p_mask <= 1, cover the response as soon
    as K p_mask >= 1, and partition it exactly at p_mask = 1/K, because view j uses u shifted by j / K (mod 1): token i
    is masked iff u_i lies in an arc of length p_mask that begins at -j / K (mod 1). Under fixed counts the same holds
    of ranks: view j masks k tokens that follow each other cyclically in one random order, and the views start P / K
    apart up to rounding. For K = 2 the joint law is MIRROR's.

    Raises:
        UserError: for fewer than 2 or more than 64 views.

    >>> u = Partition(4).uniforms(Key(0, 0), torch.tensor([0]), torch.arange(2))  # shape (1, 4, 2)
    >>> (u < 0.25).sum(dim=1).tolist()  # of the views at p_mask = 1/4, one masks each token
    [[1, 1]]
    """

    count: int = 3
    independent = False

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 64:
            raise UserError(f"partition: expected 2 to 64 views, found {self.count}.")

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        u = key.token_uniforms(Stream.MASK, rows, token_index)
        shift = torch.arange(self.count, dtype=torch.float64, device=u.device) / self.count
        # A token's u is an odd multiple of 2**-33, so that no rounding moves it across an edge of a view's arc.
        return (u[:, None] + shift[:, None]) % 1.0

    def ranks(self, uniforms: Tensor, maskable: Tensor) -> Tensor:
        size = maskable.sum(1)[:, None, None]
        # With floor(j P / K) the gaps between starts, also around the circle, are floor(P / K) or ceil(P / K).
        shift = torch.arange(self.count, device=size.device)[:, None] * size // self.count
        return (super().ranks(uniforms[:, :1], maskable) + shift) % size


@dataclass(frozen=True)
class ComplementPair(Single):
    """The two views of ``complement``: the first k tokens of one random order, and the other P - k.

    At k = P nothing is left for the second view, which is then not active. ``counts`` is the objective's rule for k.

    >>> ComplementPair().active(torch.tensor([0.5, 1.0]), size=torch.tensor([4, 4])).tolist()
    [[True, True], [True, False]]
    """

    counts: Counts = "linear"
    count = 2
    independent = False

    def uniforms(self, key: Key, rows: Tensor, token_index: Tensor) -> Tensor:
        return super().uniforms(key, rows, token_index).expand(-1, self.count, -1)

    def active(self, t: Tensor, size: Tensor | None = None) -> Tensor:
        active = super().active(t)
        if size is not None:
            active[:, 1] = masked_count(t, size, self.counts) < size
        return active

    def reach(self, size: Tensor) -> Tensor:
        reach = super().reach(size)
        reach[:, 1] = largest_ratio(size - 1, size, self.counts)
        return reach


Views = Single | Mirror | MultiSample | Partition | ComplementPair
