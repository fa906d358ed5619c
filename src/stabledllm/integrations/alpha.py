"""P-POTS as a noise schedule, for trainers that draw u uniformly and ask a scheduler for the rest (dllm's MDLMTrainer).

Such a trainer masks a token with probability ``1 - alpha(u)`` and weighs its cross-entropy by
``-alpha'(u) / (1 - alpha(u))``. With ``alpha(u) = 1 - F^-1(u)``, F the distribution function of p(t), the ratio has the
density p and the weight is ``1 / (p(t) t)``: static P-POTS, without a change to the trainer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS, p_mask

Number = float | Tensor


class AlphaScheduler:
    """A noise schedule with ``alpha(i)``, ``alpha_derivative(i)`` and ``weight(i)`` from any unbiased density of t.

    i is in [0, 1]. The mean of the weighted loss is the same for every density: that of ``Uniform()``, the linear
    schedule. The density that ``stabledllm fit --method ppots`` writes gives the least variance.

    Args:
        p_of_t: a saved ``p_of_t.json``, a ``TSampler``, or None for uniform t.
        time_epsilon: the trainer's own; it draws u from [time_epsilon, 1] and must mask at least that share.
            ``p_mask(t)`` is then this library's, with the same eps. 0 gives exactly ``alpha(u) = 1 - F^-1(u)``.

    Raises:
        UserError: a density that is biased (clipped), or that was fitted for noise other than one independent mask
            per row, which is all that such a trainer draws.
    """

    def __init__(self, p_of_t: str | Path | TSampler | None = None, time_epsilon: float = EPS):
        if not 0.0 <= time_epsilon < 1.0:
            raise UserError(f"AlphaScheduler: expected time_epsilon in [0, 1), found {time_epsilon}.")
        self.sampler, self.time_epsilon = _sampler(p_of_t), time_epsilon

    def __call__(self, i: Number) -> Number:
        return self.alpha(i)

    def alpha(self, i: Number) -> Number:
        """The probability that a token is not masked; it falls from 1 at i = 0 to 0 at i = 1."""
        return _like(i, 1.0 - self._ratio(i)[0])

    def alpha_derivative(self, i: Number) -> Number:
        """The derivative d alpha / d i: -1 / p(t), or -1 below ``time_epsilon``, where the schedule is linear."""
        return _like(i, -self._ratio(i)[1])

    def weight(self, i: Number) -> Number:
        """The factor ``-alpha'(i) / (1 - alpha(i))`` of a masked token's cross-entropy."""
        masked, slope = self._ratio(i)
        return _like(i, slope / masked)

    def reverse_mask_prob(self, s: Number, t: Number) -> Number:
        """The probability that a token masked at t is still masked at s < t."""
        return (1 - self.alpha(s)) / (1 - self.alpha(t))

    def _ratio(self, i: Number) -> tuple[Tensor, Tensor]:
        """The masking probability at i and its derivative, float64."""
        u = torch.as_tensor(i).double()
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise UserError(f"AlphaScheduler: expected i in [0, 1], found {i}.")
        eps = self.time_epsilon
        # The interval [eps, 1] holds the whole density; the trainer never draws below it.
        t = self.sampler.icdf(((u - eps) / (1 - eps)).clamp(0.0, 1.0))
        below = u < eps
        slope = torch.where(below, torch.ones_like(u), self.sampler.weight(t))
        return torch.where(below, u, p_mask(t, eps)), slope


def _like(i: Number, value: Tensor) -> Number:
    """The value as a float if i is one, else as a tensor of i's floating type."""
    if not isinstance(i, Tensor):
        return float(value)
    return value.to(i.dtype if i.is_floating_point() else torch.float32)


def _sampler(p_of_t: str | Path | TSampler | None) -> TSampler:
    if p_of_t is None:
        return Uniform()
    if not isinstance(p_of_t, str | Path):
        if not p_of_t.unbiased:
            raise UserError(f"AlphaScheduler: expected an unbiased density of t, found '{p_of_t.name}'.")
        return p_of_t
    from stabledllm.ppots.fitted_for import KIND
    from stabledllm.ppots.record import FittedDensity  # scipy, only where a fit is read

    density = FittedDensity.load(Path(p_of_t).expanduser())
    fitted, plain = Method.parse(density.method), Method()
    if (fitted.source, fitted.masker, fitted.views, fitted.syrm) != (plain.source, plain.masker, plain.views, False):
        raise UserError(f"{p_of_t}: expected a density fitted for 'ppots', found one for '{density.method}'.")
    objective = density.record.get("objective", {})
    if (weighting := objective.get("weighting")) in ("cosine", "bell"):
        raise UserError(
            f"{p_of_t}: expected a density fitted for the bound, found one for objective.weighting={weighting}."
        )
    if (tokens := objective.get("tokens", "all")) != "all":
        raise UserError(f"{p_of_t}: expected a density fitted for the bound, found one for objective.tokens={tokens}.")
    if window := objective.get("window"):
        raise UserError(
            f"{p_of_t}: expected a density fitted for the bound, found one for objective.window={list(window)}."
        )
    if (kind := density.record.get(KIND, "masked")) != "masked":
        raise UserError(f"{p_of_t}: expected a density fitted for the bound, found one for objective.kind={kind}.")
    if power := objective.get("power"):
        raise UserError(f"{p_of_t}: expected a density fitted for the bound, found one for objective.power={power:g}.")
    return density.sampler
