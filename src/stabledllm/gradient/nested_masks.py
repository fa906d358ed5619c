"""The noise of a row's gradient by its origin, from several masks of the same counts; ``mask_split.py`` splits A by it.

The part of first order is estimated from pairs of masks by the number of tokens that they share
(docs/mathematics.md#what-a-is-made-of).

Legend: a rows, b cells of t, J counts of a row, c masks of a count, n = J c masks of a row, Q blocks of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.gradient.counts import (
    coefficients_at_unit_weight,
    count_weights,
    counts_in_cells,
    places_of_counts,
)
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.profile import GradientProfile, gram_of
from stabledllm.gradient.sketch import GradientMeter
from stabledllm.noise.densities import Uniform
from stabledllm.noise.maskers.fixed_count import count_masses
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import masked_count
from stabledllm.noise.streams import Key, Stream

_STEP = 0x5B117
_STRATA, _PER_STRATUM, _MASKS = 2, 2, 12
"""Products of mean gradients need two counts of a stratum. The error of targets and context falls with the masks of one
count, whose pairs they come from, and hardly with more counts."""
MASKS_PER_ROW = _STRATA * _PER_STRATUM * _MASKS
"""Masks, and so forwards and backwards, that each row takes."""


@dataclass(frozen=True)
class NestedMasks:
    """The noise of each row's gradient by its origin, unbiased for every row; nothing is clamped.

    >>> from stabledllm.gradient.example import example_nested
    >>> nested = example_nested()
    >>> nested.targets.shape == nested.context.shape == (1, len(nested.profile.rows))
    True
    """

    count: Tensor
    """``E_t Var_k`` of the mean gradient at a count: the noise of how many tokens are masked at t, shape (Q, a)."""
    targets: Tensor
    """The first-order part of the noise of the mask given its count, shape (Q, a)."""
    context: Tensor
    """The rest of that noise, shape (Q, a)."""
    rate: Tensor
    """What each row adds to B, shape (Q, a)."""
    exact: Tensor
    """Noise of the mask under exact counts, by cell of t, with mean ``∫ Var dt`` over the cells, shape (Q, a, b)."""
    exact_context: Tensor
    """Its part of the context, shape (Q, a, b)."""
    in_partition: Tensor
    """The same of the mean over the P / k views of a partition, shape (Q, a, b)."""
    views: Tensor
    """Mean number P / k of views of a partition, by cell, shape (a, b)."""
    profile: GradientProfile
    """The profile of the same rows."""
    forwards: int
    """Number of rows that went forward and backward for it."""


def nested_masks(meter: GradientMeter, profile: GradientProfile, seed: int) -> NestedMasks:
    """Measure the rows of a profile of single fixed counts at several counts, with several masks of each.

    Counts are drawn in strata, half of them as t draws them and half in proportion to what their noise adds to A. The
    masks are draws of their own, so that these figures are independent of the profile's given the rows.

    Raises:
        ValueError: a profile of another masker or of several views.

    >>> from stabledllm.gradient.example import example_meter, example_profile
    >>> nested = nested_masks(example_meter(), example_profile().first(2), seed=0)
    >>> nested.forwards == 2 * MASKS_PER_ROW
    True
    """
    if not profile.of_counts:
        raise ValueError(f"expected a profile of fixedcount, found {profile.method.name}")
    chosen, sizes, objective = profile.rows, profile.size, profile.objective
    key, per_row, before = Key(seed, _STEP), _STRATA * _PER_STRATUM, meter.forwards
    u = key.row_uniforms(Stream.RATE, torch.arange(len(chosen) * per_row)).view(len(chosen), per_row)
    found = []
    for i, (row, size) in enumerate(zip(chosen.tolist(), sizes.tolist(), strict=True)):
        law = _law_of_counts(size, objective)
        place = (torch.arange(per_row) // _PER_STRATUM + u[i]) / _STRATA
        k = torch.searchsorted(law.cumsum(0), place).clamp(max=int(law.nonzero().max())) + 1
        t = places_of_counts(size, objective)[k - 1].repeat_interleave(_MASKS)
        gram, shared = _products(meter, profile.method, key, row, t, i * MASKS_PER_ROW)
        found.append(_RowLaw(k, size, law, objective).parts(gram, shared, profile.edges))
    stacked = {name: torch.stack([parts[name] for parts in found], dim=1) for name in found[0]}
    views = torch.stack([_mean_views(size, objective, profile.edges) for size in sizes.tolist()])
    return NestedMasks(**stacked, views=views, profile=profile, forwards=meter.forwards - before)


def first_order(gram: Tensor, shared: Tensor, k: Tensor, size: int) -> Tensor:
    """The unbiased first-order part of ``Var G_M`` over uniform subsets of k of P tokens, (Q, J).

    Of two independent masks that share s tokens, ``(P - 1) E[e(s) <G, G'>]`` is that part, with
    ``e(s) = (s - k²/P) / (k (1 - k/P))``; as e has mean 0 given either mask, both gradients are centred on the mean of
    the other masks. With one token masked or one visible, and with all masked, the whole variance is of first order.

    Args:
        gram: inner products of each count's masks, (Q, J, c, c) with c >= 3.
        shared: number of tokens that two masks share, (J, c, c).
        k: counts, (J,).

    >>> gram = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 2.0]]).expand(1, 1, 3, 3)
    >>> first_order(gram, torch.eye(3)[None], torch.tensor([1]), 4).shape  # here all of the variance
    torch.Size([1, 1])
    """
    c = gram.shape[-1]
    own, every = gram.diagonal(dim1=-2, dim2=-1), gram.sum(-1)
    to_others = every[..., :, None] - own[..., :, None] - gram
    pair = own[..., :, None] + own[..., None, :] + 2 * gram
    of_others = gram.sum((-2, -1))[..., None, None] - 2 * (every[..., :, None] + every[..., None, :]) + pair
    centred = gram - (to_others + to_others.transpose(-1, -2)) / (c - 2) + of_others / (c - 2) ** 2
    k = k.double()[:, None, None]
    # Where all tokens are masked, 0 / 1 stands for 0 / 0.
    e = (shared - k**2 / size) / (k * (1 - k / size)).clamp(min=0.25)
    mean = _mean_of_pairs(e * centred) * (size - 1)
    k = k[:, 0, 0]
    all_of_it = (k == 1) | (k >= size - 1)
    return torch.where(all_of_it, _variance(gram), mean)


def _mean_of_pairs(values: Tensor) -> Tensor:
    """Mean over pairs of different masks, (..., c, c) to (...)."""
    c = values.shape[-1]
    return (values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)) / (c * (c - 1))


def _variance(gram: Tensor) -> Tensor:
    """The trace of the unbiased covariance of vectors, from their inner products (..., c, c)."""
    return gram.diagonal(dim1=-2, dim2=-1).mean(-1) - _mean_of_pairs(gram)


def _law_of_counts(size: int, objective: Objective) -> Tensor:
    """The probabilities by which counts are drawn, (P,): half as under uniform t, half as the noise of such a mask.

    The variance of a sum over k of P tokens is taken to grow like k (1 - k/P). A count that a window makes so rare that
    no t of double precision stands for it, or that the factor of its gradients is 0, is never drawn.
    """
    weights, k = count_weights(size, objective), torch.arange(1, size + 1, dtype=torch.float64)
    noise = weights.square @ weights.step * k * (1 - k / size)
    drawn = torch.full_like(k, 1.0 / size)
    if objective.has_places:
        there = masked_count(places_of_counts(size, objective), torch.tensor(size), objective.counts) == k
        there &= coefficients_at_unit_weight(objective, k.long(), size) > 0
        drawn, noise = (each * there for each in (count_masses(Uniform(), size, objective.counts), noise))
        drawn = drawn / drawn.sum()
    return drawn if size == 1 else (drawn + noise / noise.sum()) / 2


def _products(meter: GradientMeter, counts: Method, key: Key, row: int, t: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Inner products (Q, n, n) of a row's gradients at given t, and the tokens that their masks share, (n, n)."""
    rows, gradients = torch.full(t.shape, row), None
    for batch in meter.gradients(rows, t, counts, key, start=start):
        if gradients is None:
            gradients = batch.gradients.new_empty(len(t), batch.gradients.shape[1])
        gradients[batch.index.to(gradients.device)] = batch.gradients
    _, draw = meter.draw(rows, t, counts, key, Uniform(), torch.arange(len(t)), start)
    mask = draw.mask[:, 0].double().cpu()
    return gram_of(gradients, isinstance(meter, RowGradients)), mask @ mask.T


@dataclass(frozen=True)
class _RowLaw:
    """The counts at which one row was measured, and the law that they were drawn by."""

    k: Tensor
    size: int
    law: Tensor
    objective: Objective

    def parts(self, gram: Tensor, shared: Tensor, edges: Tensor) -> dict[str, Tensor]:
        """What :class:`NestedMasks` holds of one row, by block, from (Q, n, n) and (n, n)."""
        index, j = self.k - 1, len(self.k)
        weights, whole_c = count_weights(self.size, self.objective), self.objective.coefficients(self.size)[index]
        c = coefficients_at_unit_weight(self.objective, self.k, self.size)  # of the gradients as they were measured
        scale = c.repeat_interleave(_MASKS)
        by_count = (gram / torch.outer(scale, scale)).unflatten(-2, (j, _MASKS)).unflatten(-1, (j, _MASKS))
        same = by_count.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # (Q, J, c, c)
        variance = _variance(same)
        targets = first_order(same, self._same(shared), self.k, self.size)
        point = 1.0 / (j * self.law[index])
        square = point * (weights.square @ weights.step)[index]
        mean = weights.mean[index]
        between = by_count.mean((-3, -1)) * self._pairs(point)  # of two counts, (Q, J, J)
        given_rate = (between * ((mean * weights.step) @ mean.T)).sum((-2, -1))
        whole = (between * torch.outer(whole_c, whole_c)).sum((-2, -1)) / self.size**2
        in_cell = (point * c**2)[:, None] * counts_in_cells(self.k, self.size, self.objective, edges) / edges.diff()
        context = variance - targets
        return {
            "count": (_mean_of_pairs(same) * square).sum(-1) - given_rate,
            "targets": (targets * square).sum(-1),
            "context": (context * square).sum(-1),
            "rate": given_rate - whole,
            "exact": variance @ in_cell,
            "exact_context": context @ in_cell,
            "in_partition": (context * self.k / self.size) @ in_cell,
        }

    def _same(self, values: Tensor) -> Tensor:
        """The values of the pairs of masks of one count, (n, n) to (J, c, c)."""
        return torch.stack([values[i : i + _MASKS, i : i + _MASKS] for i in range(0, len(values), _MASKS)])

    def _pairs(self, point: Tensor) -> Tensor:
        """Weights (J, J) of products of two counts: of none with itself, whose place the others of its stratum take."""
        stratum = torch.arange(len(point)) // _PER_STRATUM
        same = stratum[:, None] == stratum
        weight = torch.outer(point, point)
        weight = torch.where(same, weight * _PER_STRATUM / (_PER_STRATUM - 1), weight)
        return weight - torch.diag(weight.diagonal())


def _mean_views(size: int, objective: Objective, edges: Tensor) -> Tensor:
    """The mean of P / k over each cell of t, (b,)."""
    k = torch.arange(1, size + 1)
    return size / k.double() @ counts_in_cells(k, size, objective, edges) / edges.diff()
