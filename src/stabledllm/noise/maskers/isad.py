"""ISAD: answer delimiters are masked more often than the other tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.maskers.base import Masker, MaskInput

_CEILING = 0.95
"""The highest raised probability q of isad-exact, so that a delimiter left unmasked weighs at most 1 / 0.05 = 20."""


@dataclass(frozen=True)
class ISAD(Masker):
    """Masks delimiters with probability ``min(1, p_mask + delta)`` and other tokens with p_mask.

    As published, each token's CE is divided by its own probability. Every token's expected weight is then 1, but the
    law of its context changes, so the method is biased and marked so. With ``exact`` the probability of a delimiter is
    ``min(p + delta, max(p, 0.95))`` and the standard row loss is multiplied by the likelihood ratio P_t(M) / Q_t(M),
    which keeps the objective.

    Raises:
        UserError: for delta outside [0, 1], or rows without delimiter marks.

    >>> from stabledllm.noise.methods import Key, Method, Rows, Uniform
    >>> all_four = torch.ones(1, 4, dtype=torch.bool)
    >>> rows = Rows(torch.tensor([0]), 1, all_four, torch.arange(4), delimiter=all_four)
    >>> Method.parse("isad").draw_at(torch.tensor([0.8]), Key(0, 0), rows, Uniform()).mask.all()  # 0.8 + 0.2
    tensor(True)
    """

    delta: float = 0.2
    exact: bool = False
    independent = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta <= 1.0:
            raise UserError(f"isad: expected isad_delta in [0, 1], found {self.delta:g}.")

    def __call__(self, given: MaskInput) -> tuple[Tensor, Tensor, Tensor]:
        rows, power = given.rows, given.objective.power
        if rows.delimiter is None:
            raise UserError("isad: expected rows with answer delimiters marked, found none; set data.delimiters.")
        p = given.objective.p_mask(given.t)[:, None]
        raised = torch.minimum(p + self.delta, p.clamp(min=_CEILING)) if self.exact else (p + self.delta).clamp(max=1.0)
        q = torch.where(rows.delimiter & rows.maskable, raised, p)
        mask = (given.uniforms < q[:, None]) & rows.maskable[:, None]
        weight = given.sampler.weight(given.t)
        share = (weight / given.size)[:, None, None]
        if not self.exact:
            return mask, mask * share * (p**power / q)[:, None], weight
        ratio = self._likelihood_ratio(mask, p, q)
        return mask, mask * share * ratio * (p ** (power - 1))[:, None], weight

    @staticmethod
    def _likelihood_ratio(mask: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The likelihood ratio P_t(M) / Q_t(M) of each view's mask, shape (B, K, 1)."""
        masked = (p / q).log()[:, None]
        # At p = q = 1 every token is masked, and the ratio 0 / 0 of unmasked tokens is never used.
        unmasked = torch.where(p == q, 0.0, ((1 - p) / (1 - q)).log())[:, None]
        return torch.where(mask, masked, unmasked).sum(-1, keepdim=True).exp()


def exact(delta: float) -> ISAD:
    """ISAD with exact weights, which keep the objective.

    >>> exact(0.1)
    ISAD(delta=0.1, exact=True)
    """
    return ISAD(delta, exact=True)
