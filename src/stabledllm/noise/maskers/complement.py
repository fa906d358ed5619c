"""A fixed count and the rest: the k first tokens of one random order in one view, the P - k others in the second.

Source: docs/mathematics.md#maskers, "Complement". Every token is masked in exactly one view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.maskers.fixed_count import coefficients_of, count_mass, count_masses
from stabledllm.noise.schedule import masked_count


@dataclass(frozen=True)
class Complement:
    """Counts k = ceil(t P) and P - k; a view with count m adds ``c_m / (P (pi_m + pi_(P-m))) sum CE_i``.

    A view has the count m < P with probability pi_m as the first and pi_(P-m) as the second, hence the
    denominator; for m = P it is ``P pi_P``, as the second view is then empty and not used. Unbiased for
    any density p of t, whose cells of width 1/P have the masses pi.
    """

    independent = False
    counted = True

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        size = given.maskable.sum(1)
        k = masked_count(given.t, size)
        first = given.views.ranks(given.uniforms[:, :1], given.maskable) < k[:, None, None]
        mask = torch.cat((first, ~first), dim=1) & given.maskable[:, None]
        weight = self._weight(given, k, size)
        counts = torch.stack((k, size - k), dim=1)
        # The views' contributions are added but row losses average them: the weight below holds that factor 2.
        each = coefficients_of(counts.clamp(min=1), size, given) * weight[:, None]
        return mask, mask * each[..., None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        """Flat on the cells of the counts, and the same for k and P - k: their mean mass."""
        mass = count_masses(sampler, size)
        return Tabulated(torch.cat(((mass[:-1] + mass[:-1].flip(0)) / 2, mass[-1:])), name=sampler.name)

    @staticmethod
    def _weight(given: MaskInput, k: Tensor, size: Tensor) -> Tensor:
        """``1 / (P times the mean over the views in use of the probability of its count)``; E[weight] = 1."""
        own = count_mass(given.sampler, k, size)
        other = torch.where(k < size, count_mass(given.sampler, (size - k).clamp(min=1), size), own)
        return 2.0 / (size * (own + other))
