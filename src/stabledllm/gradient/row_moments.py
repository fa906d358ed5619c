"""The second moments of a row's gradient under each method, from profiles of inner products.

They are in (nats/param)² and unbiased: a squared mean is always a mean of products of different points.

Legend: a rows, n points of a row, Q blocks of coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.gradient.counts import counts_of, share_of_counts
from stabledllm.gradient.profile import GradientProfile
from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import MaskInput
from stabledllm.noise.maskers.fixed_count import count_mass
from stabledllm.noise.rows import Rows
from stabledllm.noise.schedule import masked_count


@dataclass(frozen=True)
class RowMoments:
    """Moments of the gradient of each row's loss under a method, by block, of shape (Q, a).

    >>> RowMoments(second=torch.ones(1, 4)).rate is None
    True
    """

    second: Tensor
    """E |g|² under the method's density and views."""
    rate: Tensor | None = None
    """∫ |E_M g|² dt, or None where it was not measured."""


def bernoulli_moments(profile: GradientProfile, sampler: TSampler, views: int) -> RowMoments:
    """Moments under a density of t and the mean of ``views`` independent Bernoulli masks, from fixed counts.

    ``second`` is ``∫ (E|g|² / views + (1 - 1 / views) |E_M g|²) w² p dt``, ``rate`` is ``∫ |E_M g|² dt`` at uniform t.

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> profile = example_profile()
    >>> one, two = (bernoulli_moments(profile, Uniform(), views).second for views in (1, 2))
    >>> (two < one).all()
    tensor(True)
    """
    if not profile.of_counts:
        raise ValueError(f"expected a profile of fixedcount, found {profile.method.name}")
    second, rate, pair_weight = [], [], profile.pair_weight
    for i in range(len(profile.rows)):
        found = counts_of(profile, i)
        weights, square = found.weights, bernoulli_square(profile, sampler, i)
        of_count = weights.mean[found.index] * found.scale[:, None] * found.share[:, None]
        pair = pair_weight * profile.gram[:, i]
        rate.append((pair * ((of_count * weights.step) @ of_count.T)).sum((-2, -1)))
        if views > 1:
            shared = (pair * ((of_count * weights.step * _density(sampler, weights.t)) @ of_count.T)).sum((-2, -1))
            square = square / views + (1 - 1 / views) * shared
        second.append(square)
    return RowMoments(torch.stack(second, 1), torch.stack(rate, 1))


def bernoulli_square(
    profile: GradientProfile, sampler: TSampler, i: int, share: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``∫ E|g|² w² p dt`` of row i under one Bernoulli mask, from fixed counts, by block, shape (Q,).

    Args:
        share: the share of it at each t that counts, of shape (f,) for t of shape (f,); None counts all.

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> profile = example_profile()
    >>> torch.equal(bernoulli_square(profile, Uniform(), 0), bernoulli_moments(profile, Uniform(), 1).second[:, 0])
    True
    """
    found = counts_of(profile, i)
    weights, point = found.weights, profile.point_width * found.share * found.scale**2
    of_t = weights.step * _density(sampler, weights.t)
    if share is not None:
        of_t = of_t * share(weights.t)
    single = point * (weights.square @ of_t)[found.index]
    return profile.gram[:, i].diagonal(dim1=-2, dim2=-1) @ single


def _density(sampler: TSampler, t: Tensor) -> Tensor:
    """``w² p`` where the weight is 1 / p(t) itself."""
    return (sampler.weight(t) ** 2 * sampler.log_prob(t).exp()).nan_to_num()


def direct_moments(profile: GradientProfile, sampler: TSampler) -> RowMoments:
    """Moments under a density of t and the profile's own masker and views, from the points' rates and rows' weights.

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> profile = example_profile()
    >>> direct_moments(profile, Uniform()).second.shape
    torch.Size([1, 4])
    """
    return RowMoments(torch.stack([direct_square(profile, sampler, i) for i in range(len(profile.rows))], 1))


def direct_square(profile: GradientProfile, sampler: TSampler, i: int) -> Tensor:
    """``E|g|²`` of row i under the profile's own masker and views, by block, shape (Q,).

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> profile = example_profile()
    >>> torch.equal(direct_square(profile, Uniform(), 0), direct_moments(profile, Uniform()).second[:, 0])
    True
    """
    return profile.squares()[:, i] @ (_kernel(sampler, profile, i) * profile.point_width)


def point_weight(sampler: TSampler, profile: GradientProfile, i: int) -> Tensor:
    """Importance weight w of every point of row i, shape (n,).

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Uniform
    >>> point_weight(Uniform(), example_profile(), 0).round(decimals=6).unique()
    tensor([1.], dtype=torch.float64)
    """
    return weight_at(profile.t[i], sampler, profile, int(profile.size[i]))


def weight_at(t: Tensor, sampler: TSampler, profile: GradientProfile, size: int) -> Tensor:
    """Importance weight w of the profile's masker for a row of ``size`` tokens, shape of t, (U,).

    >>> from stabledllm.gradient.example import example_profile
    >>> from stabledllm.noise.densities import Tabulated
    >>> weight_at(torch.tensor([0.2, 0.8]), Tabulated([3.0, 1.0]), example_profile(), size=1)  # its count is certain
    tensor([1., 1.], dtype=torch.float64)
    """
    masker = profile.method.masker
    if masker.counted and profile.objective.has_places:
        return _weight_of_counts(t, sampler, profile, size)
    return masker.weighs_by(sampler, size).weight(t)


def _weight_of_counts(t: Tensor, sampler: TSampler, profile: GradientProfile, size: int) -> Tensor:
    """The weight that the masker itself gives: counts' cells of unequal width fit no table of a density."""
    views, maskable, place = profile.method.views, torch.ones(len(t), size, dtype=torch.bool), torch.arange(len(t))
    rows = Rows(position=place, step_rows=len(t), maskable=maskable, token_index=torch.arange(size))
    any_order = torch.zeros(len(t), 1, size, dtype=torch.float64)
    return profile.method.masker(MaskInput(t, any_order, views, rows, sampler, profile.objective))[2]


def _kernel(sampler: TSampler, profile: GradientProfile, i: int) -> Tensor:
    """``w² p`` at every point of row i, shape (n,); for counts its exact mean over the count's cell of t."""
    t, size = profile.t[i], profile.size[i]
    density = sampler.log_prob(t).exp()
    if profile.method.masker.counted:
        counts = profile.objective.counts
        k = masked_count(t, size, counts)
        share = share_of_counts(profile.objective, k, int(size))
        density = share * count_mass(sampler, k, size.expand(t.shape), counts)
    return point_weight(sampler, profile, i) ** 2 * density
