"""The loss of direct preference optimisation from estimated log-likelihoods, and the bias that their noise gives it.

Sources: DPO (arXiv:2305.18290); for masked diffusion models VRPO (arXiv:2505.19223), which puts the ELBO in place of
the log-likelihood.

Legend: B pairs, R replicates (independent estimates from the same number of forwards).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError, did_you_mean

CORRECTIONS = ("none", "jackknife")


@dataclass(frozen=True)
class PairLosses:
    """The losses of pairs, with what is worth logging beside them; every tensor but ``value`` is detached."""

    value: Tensor
    """Shape (B,), with the gradient of the estimates."""
    margin: Tensor
    """``beta`` times the difference of the two log-ratios, shape (B,); positive where the chosen one is preferred."""
    rewards: Tensor
    """``beta`` times the log-ratio of policy to reference of the chosen and of the rejected one, shape (B, 2)."""
    bias: Tensor
    """How much the plain loss exceeds the true one on average, estimated; shape (B,), NaN from one replicate."""


@dataclass(frozen=True)
class DPOLoss:
    """``-log sigmoid(margin)`` of pairs, plus ``sft`` times the bound on the NLL per token of the chosen response.

    The mean of ``-log sigmoid`` over the noise is not its value at the mean margin: it exceeds it by about
    ``s (1 - s) Var / 2`` with s the sigmoid and Var the variance of the estimated margin. ``jackknife`` takes this off,
    loss and gradient alike, by leaving out each replicate in turn: what remains is of the order of Var². It is the more
    noisy the larger that is, and one replicate does not allow it.

    Args:
        beta: of the margin, on the scale of nats per response (not per token). correction: ``none`` or ``jackknife``.
        sft: weight of the second term.

    Raises:
        UserError: a beta that is not above 0, an ``sft`` below 0, or another correction.

    >>> same = torch.zeros(1, 2, 2)
    >>> DPOLoss(beta=0.5)(same, same, torch.ones(1, 2)).value
    tensor([0.6931])
    >>> policy = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])  # two estimates of the chosen response: 1 and 3 nats
    >>> found = DPOLoss(beta=0.5)(policy, torch.zeros(1, 2, 2), torch.ones(1, 2))
    >>> found.margin, found.value, found.bias
    (tensor([1.]), tensor([0.3133]), tensor([0.0245]))
    """

    beta: float = 0.1
    correction: str = "none"
    sft: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UserError(f"dpo.beta: expected a number above 0, found {self.beta}.")
        if not (math.isfinite(self.sft) and self.sft >= 0):
            raise UserError(f"dpo.sft: expected a number of at least 0, found {self.sft}.")
        if self.correction not in CORRECTIONS:
            hint = did_you_mean(self.correction, CORRECTIONS)
            raise UserError(f"dpo.correction: expected none or jackknife, found '{self.correction}'{hint}.")

    def __call__(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> PairLosses:
        """The losses of pairs.

        Args:
            policy, reference: the replicates' estimates of the ELBO in nats of the chosen and the rejected response,
                shape (B, 2, R). Where both models saw the same draws their noise cancels in the difference.
            tokens: response tokens of both, shape (B, 2).

        Raises:
            UserError: a correction from one replicate.
        """
        ratio = policy - reference
        margins = self.beta * (ratio[:, 0] - ratio[:, 1])
        plain = F.softplus(-margins.mean(1))
        bias = torch.full_like(plain.detach(), math.nan)
        value = plain
        if (replicates := margins.shape[1]) > 1:
            left_out = (margins.sum(1, keepdim=True) - margins) / (replicates - 1)
            excess = (replicates - 1) * (F.softplus(-left_out).mean(1) - plain)
            bias = excess.detach()
            value = plain - excess if self.correction == "jackknife" else plain
        elif self.correction == "jackknife":
            raise UserError(
                "dpo.correction: expected at least 2 replicates for jackknife, found 1; take a larger budget, or "
                "correction=none."
            )
        if self.sft:
            value = value - self.sft * policy[:, 0].mean(1) / tokens[:, 0]
        rewards = self.beta * ratio.detach().mean(2)
        return PairLosses(value, rewards[:, 0] - rewards[:, 1], rewards, bias)

    def with_slopes(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> tuple[PairLosses, Tensor]:
        """The losses, and the derivative of their sum by each of the policy's estimates, shape (B, 2, R)."""
        with torch.enable_grad():
            given = policy.detach().requires_grad_()
            found = self(given, reference.detach(), tokens)
            (slopes,) = torch.autograd.grad(found.value.sum(), given)
        return PairLosses(found.value.detach(), found.margin, found.rewards, found.bias), slopes
