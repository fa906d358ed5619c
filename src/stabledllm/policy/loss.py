"""The clipped loss of group-relative policy optimisation, from estimated log-likelihoods.

Sources: GRPO (arXiv:2402.03300), ratios of whole responses GSPO (arXiv:2507.18071) and, for masked diffusion models,
ESPO (arXiv:2512.03759); the estimates of a divergence k1, k2, k3: J. Schulman, "Approximating KL divergence" (2020).

Legend: B responses, R replicates (independent estimates), T tokens of the longest response.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.errors import UserError, did_you_mean

RATIOS = ("token", "mean", "sequence")
MEANS = ("response", "token")
DIVERGENCES = ("k1", "k2", "k3")


@dataclass(frozen=True)
class PolicyLosses:
    """The losses of responses, with what is worth logging beside them; every tensor but ``value`` is detached.

    What is beside them is a mean over the response's tokens where each has a ratio, else the response's own.
    """

    value: Tensor
    """Shape (B,), with the gradient of the estimates. With ``mean="token"`` the sum over the response's tokens."""
    ratio: Tensor
    """Policy over old policy, shape (B,)."""
    clipped_low: Tensor
    """Share of its ratios that fell below the lower bound with a negative advantage, shape (B,): no gradient."""
    clipped_high: Tensor
    """Share of its ratios that rose above the upper bound with a positive advantage, shape (B,): no gradient."""
    kl: Tensor
    """The estimated divergence from the reference without its weight, shape (B,); 0 without a reference."""

    @property
    def clipped(self) -> Tensor:
        """Share of its ratios that have no gradient, shape (B,)."""
        return self.clipped_low + self.clipped_high


@dataclass(frozen=True)
class GRPOLoss:
    """``-min(rho A, clip(rho) A) + beta KL``, with A the response's advantage and rho a ratio of policy to old policy.

    The ratio is ``exp(current - old)`` of each token (``token``), of the response with its log-ratio divided by its
    tokens (``mean``), or not divided (``sequence``). The divergence is estimated on the same scale, from
    ``d = reference - current``: ``k1`` is -d, ``k2`` d^2 / 2, ``k3`` exp(d) - d - 1.

    Args:
        clip, clip_high: how far below and above 1 a ratio may go; without ``clip_high`` as far as below.
        mean: with ratios of tokens: ``response``, the mean over a response's tokens; ``token``, their sum, which the
            caller divides by the tokens of all responses of a step.

    Raises:
        UserError: a clip that is not above 0, a beta below 0, an unknown name, or ``token`` means without such ratios.

    >>> zero, one = torch.zeros(2, 1), torch.ones(2)
    >>> found = GRPOLoss("sequence")(torch.tensor([[0.1], [0.5]]), zero, None, one, 4 * one)
    >>> found.value, found.clipped
    (tensor([-1.1052, -1.2000]), tensor([0., 1.]))
    """

    ratio: str = "mean"
    clip: float = 0.2
    clip_high: float | None = None
    mean: str = "response"
    beta: float = 0.0
    kl: str = "k3"

    def __post_init__(self) -> None:
        for name, choices in (("ratio", RATIOS), ("mean", MEANS), ("kl", DIVERGENCES)):
            if (value := getattr(self, name)) not in choices:
                listed = " or ".join((", ".join(choices[:-1]), choices[-1]))
                raise UserError(f"grpo.{name}: expected {listed}, found '{value}'{did_you_mean(value, choices)}.")
        for name, value in (("clip", self.clip), ("clip_high", self.high)):
            if not value > 0:
                raise UserError(f"grpo.{name}: expected a number above 0, found {value}.")
        if not self.beta >= 0:
            raise UserError(f"grpo.beta: expected a number of at least 0, found {self.beta}.")
        if self.mean == "token" and self.ratio != "token":
            raise UserError(f"grpo.mean: expected response with ratios of responses ({self.ratio}), found 'token'.")

    @property
    def high(self) -> float:
        """How far above 1 a ratio may go."""
        return self.clip if self.clip_high is None else self.clip_high

    def __call__(
        self,
        current: Tensor,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        tokens: Tensor,
        scored: Tensor | None = None,
    ) -> PolicyLosses:
        """The losses of responses.

        Args:
            current, old, reference: estimates in nats on the same draws: of responses, shape (B, R), whose mean
                counts, or of their tokens, (B, T), of which those ``scored`` count. ``reference`` may be None where
                ``beta`` is 0.
            advantages: shape (B,). tokens: of each response, (B,). scored: bool, (B, T); None for responses.

        Raises:
            UserError: ratios of tokens without estimates of tokens, or a beta above 0 without a reference.
        """
        if self.beta and reference is None:
            raise UserError(f"grpo.beta: expected a reference for a divergence of weight {self.beta:g}, found none.")
        if self.ratio == "token":
            if scored is None:
                raise UserError(
                    "grpo.ratio: expected estimates of tokens for ratios of tokens, found those of responses."
                )
            terms = scored.to(current)
        else:
            scale = self._scale(tokens, scored).to(current)
            current, old, reference = (_of_response(v, scored, scale) for v in (current, old, reference))
            terms = torch.ones_like(current)
        count = terms.sum(1).clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return ((values * terms).sum(1) / count).detach()

        advantage, log_ratio = advantages.to(current)[:, None], current - old
        value, rho = -self._held(log_ratio, advantage) * advantage, log_ratio.detach().exp()
        kl = self._divergence(reference - current) if reference is not None else torch.zeros_like(value)
        value = ((value + self.beta * kl if self.beta else value) * terms).sum(1)
        return PolicyLosses(
            value=value if self.mean == "token" else value / count,
            ratio=mean(rho) + (terms.sum(1) == 0),  # of a response in which nothing is scored it is 1
            clipped_low=mean(((rho < 1 - self.clip) & (advantage < 0)).to(current)),
            clipped_high=mean(((rho > 1 + self.high) & (advantage > 0)).to(current)),
            kl=mean(kl),
        )

    def with_slopes(self, current: Tensor, *beside: Tensor | None) -> tuple[PolicyLosses, Tensor]:
        """The losses, and the derivative of their sum by each of the policy's estimates, in their shape."""
        with torch.enable_grad():
            given = current.detach().requires_grad_()
            found = self(given, *beside)
            (slopes,) = torch.autograd.grad(found.value.sum(), given)
        rest = (found.ratio, found.clipped_low, found.clipped_high, found.kl)
        return PolicyLosses(found.value.detach(), *rest), slopes

    def _scale(self, tokens: Tensor, scored: Tensor | None) -> Tensor:
        """What the log-ratio of each response is divided by, shape (B,)."""
        if self.ratio == "sequence":
            return torch.ones_like(tokens)
        return (tokens if scored is None else scored.sum(1)).clamp(min=1)

    def _held(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """That of rho and clip(rho) whose product with A is the lesser: held from below where A < 0, else from above.

        What is held has no gradient; where that is from above its exponential, which may be infinite, is not taken.
        """
        falls = advantage < 0
        fallen = torch.where(falls, log_ratio, 0.0).exp().clamp(min=1 - self.clip)
        return torch.where(falls, fallen, log_ratio.clamp(max=math.log1p(self.high)).exp())

    def _divergence(self, d: Tensor) -> Tensor:
        return {"k1": lambda: -d, "k2": lambda: d.square() / 2, "k3": lambda: torch.expm1(d) - d}[self.kl]()


def _of_response(values: Tensor | None, scored: Tensor | None, scale: Tensor) -> Tensor | None:
    """Each response's estimate over ``scale``, shape (B, 1)."""
    if values is None:
        return None
    whole = values.mean(1) if scored is None else (values * scored).sum(1)
    return (whole / scale)[:, None]
