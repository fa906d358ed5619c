"""Two fixed counts that cover the row: k random tokens in the first view, the other P - k in the second.

Source: docs/mathematics.md#maskers, "Complement". Every token is masked in exactly one view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.maskers.base import Masker, MaskInput
from stabledllm.noise.maskers.fixed_count import coefficients_of, count_mass, count_masses, flat_on_counts
from stabledllm.noise.schedule import Counts, masked_count


@dataclass(frozen=True)
class Complement(Masker):
    """Masks k = ceil(t P) and P - k tokens; a view with count m adds ``c_m / (P (pi_m + pi_(P-m))) sum CE_i``.

    A view has the count m < P with probability pi_m as the first and pi_(P-m) as the second, hence the
    denominator; for m = P it is ``P pi_P``, as the second view is then empty and not used. Unbiased for
    any density p of t, whose cells of width 1/P have the masses pi; under a bell they have the widths of ``counts``.

    >>> from stabledllm.noise.densities import Tabulated
    >>> Complement().weighs_by(Tabulated([3.0, 2.0, 1.0, 2.0]), size=4).density.tolist()  # the mean of k and P - k
    [1.0, 1.0, 1.0, 1.0]
    """

    counts: Counts = "linear"
    counted = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        size = given.size
        k = masked_count(given.t, size, self.counts)
        first = given.views.ranks(given.uniforms[:, :1], given.rows.maskable) < k[:, None, None]
        mask = torch.cat((first, ~first), dim=1) & given.rows.maskable[:, None]
        weight = self._weight(given, k, size)
        counts = torch.stack((k, size - k), dim=1)
        # The contributions of the two views are to be added, but row losses average over views: the weight holds the 2.
        coefficient = coefficients_of(counts.clamp(min=1), size, given.objective) * weight[:, None]
        if given.objective.has_places:  # the weight of a row is one against the uniform density of places
            weight = weight / self._weight(replace(given, sampler=Uniform()), k, size)
        return mask, mask * coefficient[..., None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """``sampler`` with each count's mass replaced by the mean over k and P - k, flat within the count's cell."""
        return flat_on_counts(lambda p: self._masses(p, size), sampler, size, self.counts)

    def _masses(self, sampler: TSampler, size: int) -> Tensor:
        mass = count_masses(sampler, size, self.counts)
        return torch.cat(((mass[:-1] + mass[:-1].flip(0)) / 2, mass[-1:]))

    def _weight(self, given: MaskInput, k: Tensor, size: Tensor) -> Tensor:
        """``1 / (P times the mean, over the active views, of the probability of the view's count)``; E[weight] = 1."""
        own = count_mass(given.sampler, k, size, self.counts)
        other = torch.where(k < size, count_mass(given.sampler, (size - k).clamp(min=1), size, self.counts), own)
        return 2.0 / (size * (own + other))
