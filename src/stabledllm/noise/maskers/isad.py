"""ISAD: answer delimiters are masked more often than the other tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.schedule import p_mask

_CEILING = 0.95
"""isad-exact leaves 1 - q at least 0.05, so that a delimiter left unmasked weighs at most 20."""


@dataclass(frozen=True)
class ISAD:
    """Delimiters are masked with ``min(1, p_mask + delta)``, other tokens with p_mask.

    As published each token's CE is divided by its own probability. That keeps every token's expected
    weight at 1 but changes the law of its context, so it is biased and says so. With ``exact`` the
    probability is ``min(p + delta, max(p, 0.95))`` and the standard row loss is multiplied by the
    likelihood ratio P_t(M) / Q_t(M): the objective is kept.

    Raises:
        UserError: for delta outside [0, 1], or rows without delimiter marks.
    """

    delta: float = 0.2
    exact: bool = False
    independent = True
    counted = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta <= 1.0:
            raise UserError(f"isad: expected isad_delta in [0, 1], found {self.delta:g}.")

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        if given.delimiter is None:
            raise UserError("isad: expected rows with answer delimiters marked, found none; set data.delimiters.")
        p = p_mask(given.t, given.eps)[:, None]
        raised = torch.minimum(p + self.delta, p.clamp(min=_CEILING)) if self.exact else (p + self.delta).clamp(max=1.0)
        q = torch.where(given.delimiter & given.maskable, raised, p)
        mask = (given.uniforms < q[:, None]) & given.maskable[:, None]
        weight = given.sampler.weight(given.t)
        share = (weight / given.maskable.sum(1))[:, None, None]
        if not self.exact:
            return mask, mask * share * (p**given.power / q)[:, None], weight
        ratio = self._likelihood_ratio(mask, p, q)
        return mask, mask * share * ratio * (p ** (given.power - 1))[:, None], weight

    def weighs_by(self, sampler: TSampler, size: int) -> TSampler:
        return sampler

    @staticmethod
    def _likelihood_ratio(mask: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """P_t(M) / Q_t(M) per view, shape (B, K, 1)."""
        masked = (p / q).log()[:, None]
        # At p = q = 1 nothing is left unmasked; the ratio of the unmasked is then never read.
        unmasked = torch.where(p == q, 0.0, ((1 - p) / (1 - q)).log())[:, None]
        return torch.where(mask, masked, unmasked).sum(-1, keepdim=True).exp()
