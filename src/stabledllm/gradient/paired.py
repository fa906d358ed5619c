"""The gradient's noise from Standard's own masks, two at each t, where counts do not decide the law of a mask.

Under ``lift`` and ``gift`` the model chooses the masked tokens by t as well, so that gradients of exact counts say
nothing of Standard's. Here each row has masks at several t of each cell, two at each: products of two masks of one t
give ``|E_M g|²`` there, products of different t ``|∫ g dt|²``. A then holds everything that is drawn given t: the mask,
and what the choice is drawn with.

Legend: a rows, n points of a row (two masks of each t), Q blocks of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.gradient.components import GradientDecomposition, decompose_gradient
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.profile import GradientProfile, profile_at
from stabledllm.gradient.row_moments import RowMoments
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.gradient.tail import shape_of
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.profile import rate_edges
from stabledllm.variance.some_masked import SomeMasked, chance_of_some

_STEP = 0x64AD0
"""That of profiles, so that the rows are theirs."""
RATES, MASKS = 2, 2
"""Values of t of each cell, of which products of different ones need two, and masks at each."""


class GivenHidden:
    """A meter of rows that knows masks which were drawn given that they hide a token; mixed with a meter of gradients.

    Each loss is multiplied by the chance q of that: its mean is that of plain masks, and its square that of plain masks
    times q.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, given = example_meter(GivenHiddenRowGradients), replace(Method(), masker=SomeMasked())
    >>> next(meter.gradients(torch.tensor([0]), torch.tensor([0.01]).double(), given, Key(0, 0))).losses > 0
    tensor([True])
    """

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> Draw:
        """Draw the noise of rows at given mask ratios."""
        draw = super().noise_at(t, method, key, noise, sampler)
        if not isinstance(method.masker, SomeMasked):
            return draw
        chance = chance_of_some(draw.t, noise.maskable.sum(1), self.objective)
        return replace(draw, coefficient=draw.coefficient * chance[:, None, None])


class GivenHiddenRowGradients(GivenHidden, RowGradients):
    """A meter of the exact gradients of rows, also of masks that were drawn given that they hide a token.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(GivenHiddenRowGradients).rows)
    4
    """


class GivenHiddenProjectedGradients(GivenHidden, ProjectedGradients):
    """A meter of the projected gradients of such rows.

    >>> from stabledllm.gradient.example import example_meter
    >>> len(example_meter(GivenHiddenProjectedGradients).rows)
    4
    """


@dataclass(frozen=True)
class PairedRates:
    """Gradients of rows under Standard's masks, :data:`MASKS` at each t; build it with :func:`paired_rates`.

    >>> from stabledllm.gradient.example import example_meter
    >>> paired = paired_rates(example_meter(GivenHiddenRowGradients), Method(), rows=4, rates=4, seed=0)
    >>> (paired.moments().second > paired.moments().rate).float().mean() > 0.5
    tensor(True)
    """

    profile: GradientProfile

    @property
    def chance(self) -> Tensor:
        """The chance q that a mask hides a token, of which its square lacks a factor, (a, n); 1 for plain masks."""
        t = self.profile.t
        if not isinstance(self.profile.method.masker, SomeMasked):
            return torch.ones_like(t)
        return chance_of_some(t, self.profile.size[:, None], self.profile.objective)

    def first(self, rows: int) -> PairedRates:
        """The same of the first rows only."""
        return PairedRates(self.profile.first(rows))

    def moments(self, sampler: TSampler | None = None, views: int = 1) -> RowMoments:
        """Moments under a density of t (uniform without one) and the mean of ``views`` independent masks.

        ``second`` is ``∫ (E|g|² / views + (1 - 1 / views) |E_M g|²) w² p dt``, ``rate`` is ``∫ |E_M g|² w² p dt``.
        """
        sampler, profile = sampler or Uniform(), self.profile
        density = (sampler.weight(profile.t) ** 2 * sampler.log_prob(profile.t).exp()).nan_to_num()
        share = density * profile.point_width
        square = (profile.squares() * (share / self.chance)).sum(-1)
        others = profile.same_rate.double() - torch.eye(len(profile.cell), dtype=torch.float64)
        rate = torch.einsum("qapr,pr,ap->qa", profile.gram, others, share) / (MASKS - 1)
        return RowMoments(square / views + (1 - 1 / views) * rate, rate)

    def decomposition(self) -> GradientDecomposition:
        """A, B and C of Standard's gradient; jackknife errors over rows."""
        return decompose_gradient(self.profile, self.moments(), self._tail())

    def _tail(self) -> float:
        """Pareto-k of |g|² for iid uniform t: of what was measured, in proportion to how often it is drawn."""
        profile, chance = self.profile, self.chance
        value = profile.squares().mean(0) / chance**2
        mass = profile.point_width * chance
        nothing = (1.0 - mass.sum(1)).clamp(min=0).sum()[None]
        return shape_of(torch.cat((value.flatten(), torch.zeros(1).double())), torch.cat((mass.flatten(), nothing)))


def paired_rates(
    meter: GivenHiddenRowGradients | GivenHiddenProjectedGradients,
    standard: Method,
    *,
    rows: int,
    rates: int,
    seed: int,
) -> PairedRates:
    """Measure gradients of ``rows`` distinct rows, those of a profile of the same seed, at :data:`RATES` t a cell.

    Masks are drawn given that they hide a token, but for ``gift``, whose tokens have other probabilities than p_mask.

    Raises:
        ValueError: another masker than independent masks of single views.

    >>> from stabledllm.gradient.example import example_meter
    >>> paired = paired_rates(example_meter(GivenHiddenRowGradients), Method(), rows=2, rates=4, seed=0)
    >>> paired.profile.t[:, 0] == paired.profile.t[:, 1]
    tensor([True, True])
    """
    if standard.name != "standard":
        raise ValueError(f"expected standard, found {standard.name}")
    plain = standard.objective.tokens == "gift"
    drawing = standard if plain else replace(standard, masker=SomeMasked())
    key = Key(seed, _STEP)
    chosen = key.permutation(Stream.RESAMPLE, len(meter.rows), torch.device("cpu"))[:rows]
    edges = rate_edges(rates, meter.objective.floor)
    cell = torch.arange(len(edges) - 1).repeat_interleave(RATES)
    a, n = len(chosen), len(cell)
    u = key.row_uniforms(Stream.RATE, torch.arange(a * n)).view(a, n)
    t = (edges[cell] + u * edges.diff()[cell]).repeat_interleave(MASKS, dim=1)
    size = torch.tensor([meter.rows[i].maskable_count(syrm=False) for i in chosen.tolist()])
    measured = profile_at(meter, drawing, key, chosen, size, edges, cell.repeat_interleave(MASKS), t)
    return PairedRates(replace(measured, masks_per_rate=MASKS))


def points_of_pairs(rates: int, floor: float) -> int:
    """The number of points of each row that :func:`paired_rates` measures.

    >>> points_of_pairs(2, 0.25)  # three cells
    12
    """
    return (len(rate_edges(rates, floor)) - 1) * RATES * MASKS
