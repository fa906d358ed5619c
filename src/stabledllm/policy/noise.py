"""What the noise of estimated log-likelihoods does to a policy gradient: to ratio, loss and gradient, by estimator.

A prompt's responses and their advantages are held fixed and the noise is drawn again and again; the figures are means
over prompts, their intervals are over prompts. Beside them stands what noise cannot tell: how far an estimator's mean
lies from the bound, and its mean gradient from that of the bound, by many more forwards.

Legend: Q prompts, G responses of each, R replicates, T tokens of the longest response, N ratios of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.gradient.bounded import cosine, not_negative
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.likelihood.compared import MeasuredNoise, of_positive_ratio
from stabledllm.likelihood.interface import Draws, Estimator
from stabledllm.likelihood.repeated import OTHER_SEED, BetweenItems, Repeats, excess, gradient_of
from stabledllm.models.evaluating import evaluating
from stabledllm.policy.curvature import Ratios, loss_at_mean, ratios_of
from stabledllm.policy.loss import GRPOLoss
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio
from stabledllm.stats.jackknife import jackknife

EXACT_REPEATS = 2
"""Of the estimate with many forwards: two, whose product tells the squared norm of its mean gradient without noise."""


@dataclass(frozen=True)
class Group:
    """The responses to a prompt with their advantages, shape (G,)."""

    responses: Sequence[TokenRow]
    advantages: Tensor


@dataclass(frozen=True)
class Candidate:
    """An estimator to be measured, with the loss that its values go into.

    Args:
        forwards: of each response and model.
        of_bound: whether its mean gradient is that of the bound (ELBO), so that its noise can be set beside that of
            others of which this is so.
        shared: whether policy, old policy and reference see the same draws, as in training here.
    """

    name: str
    estimator: Estimator
    loss: GRPOLoss
    forwards: int
    of_bound: bool = True
    shared: bool = True


@dataclass(frozen=True)
class GroupNoise(MeasuredNoise):
    """The noise of one estimator. Every quantity is given for each prompt, shape (Q,), float64."""

    QUANTITIES: ClassVar[tuple[str, ...]] = ("log_ratio", "loss", "gradient")
    FIGURES: ClassVar[tuple[str, ...]] = ("bias", "value", "offset")

    log_ratio: Tensor
    """Variance over the noise of a response's log-ratio of policy to old policy in nats per token, mean over the
    group."""
    loss: Tensor
    """Variance of the group's mean loss."""
    gradient: Tensor
    """Variance of that loss's gradient: the sum over the coordinates that are measured."""
    bias: Tensor
    """How much the mean loss exceeds the loss at the mean log-ratios: what noise makes of exp, clipping and KL."""
    value: Tensor
    """The mean loss."""
    offset: Tensor
    """The mean estimate of the log-likelihood less the bound, in nats per token, mean over the group."""
    signal: Tensor
    """Squared norm of the mean gradient, without what noise adds to it."""
    along: Tensor
    """Product of the mean gradient with that of the bound."""
    exact: Tensor
    """Squared norm of the mean gradient of the bound."""
    of_bound: bool = True
    between: float = field(default=float("nan"))
    """Variance between prompts of the mean gradient, which no draws lower."""

    def over(self, other: MeasuredNoise, quantity: str) -> Ratio:
        """As for all noise; but the gradient's of an estimator of something else is measured by its own mean gradient.

        Its gradient has another scale, so that its variance means nothing beside that of another: what is compared is
        the variance over the squared norm of the mean.
        """
        if quantity != "gradient" or (self.of_bound and other.of_bound):
            return super().over(other, quantity)
        top, bottom = self.gradient * self.forwards, other.gradient * other.forwards
        return of_positive_ratio((top, other.mean_square), (bottom, self.mean_square))

    @property
    def mean_square(self) -> Tensor:
        """Squared norm of the estimator's mean gradient; of the bound it is known best from many forwards."""
        return self.exact if self.of_bound else self.signal

    def direction(self) -> tuple[Estimate, Estimate]:
        """The cosine of the mean gradient with the bound's, over all prompts, and its norm over the bound's.

        Errors are over prompts (jackknife). NaN where an estimated squared norm is not above 0.
        """
        figures, without = self.products()

        def norms(keep: Tensor) -> float:
            own, exact = (float(x[keep].mean()) for x in (self.signal, self.exact))
            return (own / exact) ** 0.5 if min(own, exact) > 0 else math.nan

        return cosine(figures, [without]), not_negative(jackknife(norms, len(without), ""))

    def products(self) -> tuple[Tensor, Tensor]:
        """Product of the mean gradient with the bound's and the squared norms, (3,); without each prompt, (Q, 3)."""
        each = torch.stack([self.along, self.signal, self.exact], -1)
        return each.mean(0), (each.sum(0) - each) / (len(each) - 1)

    def as_dict(self) -> dict:
        direction, size = (found.as_dict() for found in self.direction())
        kept = {"direction": direction, "size": size, "of_bound": self.of_bound, "between": self.between}
        return super().as_dict() | kept


@dataclass(frozen=True)
class Models:
    """The models of a step: ``old`` is None where it is the policy itself, ``reference`` where the loss has none."""

    policy: nn.Module
    old: nn.Module | None = None
    reference: nn.Module | None = None


def measure_groups(
    models: Models,
    groups: Sequence[Group],
    candidates: Sequence[Candidate],
    exact: Candidate,
    *,
    repeats: int = 8,
    seed: int = 0,
    parameters: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda groups: None,
) -> list[GroupNoise]:
    """Measure the noise of estimators on the same responses, in evaluation mode; the models are left as they were.

    Unbiased for each prompt, but for the bias of the loss, of which a part of the order of 1 / repeats² is left.

    Args:
        exact: an estimator of the bound with many forwards, which the others are held against.
        repeats: steps that each group is drawn in, at least 2. parameters: patterns of names of the policy's parameters
            whose gradient is measured; without them all that are trained.
        progress: called with 1 when a group of a candidate is done, or of the exact one.

    Raises:
        UserError: fewer than 2 repeats, no group, no such parameters, or what the estimators refuse.
    """
    if repeats < 2 or not groups:
        raise UserError(f"grpo: expected responses and at least 2 repeats, found {len(groups)} and {repeats}.")
    chosen = list(chosen_parameters(models.policy, parameters).values())
    figures: list[list[list[float]]] = [[] for _ in candidates]
    between = [BetweenItems() for _ in candidates]
    first = 0
    with ExitStack() as modes:
        for model in (models.policy, models.old, models.reference):
            modes.enter_context(evaluating(model) if model is not None else ExitStack())
        for group in groups:
            numbers = range(first, first + len(group.responses))
            first += len(group.responses)
            truth = _Seen.of(models, group, numbers, exact, EXACT_REPEATS, seed + 2 * OTHER_SEED, chosen)
            progress(1)
            for i, candidate in enumerate(candidates):
                seen = _Seen.of(models, group, numbers, candidate, repeats, seed, chosen)
                figures[i].append(seen.figures(truth, candidate.loss, group.advantages))
                between[i].add(seen.repeats)
                progress(1)
    columns = [torch.tensor(each, dtype=torch.float64).unbind(1) for each in figures]
    return [
        GroupNoise(c.name, c.forwards, *each, of_bound=c.of_bound, between=b.variance)
        for c, each, b in zip(candidates, columns, between, strict=True)
    ]


@dataclass
class _Seen:
    """The repeats of a group under one estimator."""

    repeats: Repeats = field(default_factory=Repeats)
    ratios: list[Ratios] = field(default_factory=list)
    log_ratios: list[Tensor] = field(default_factory=list)
    """Per token, shape (G,)."""
    likelihoods: list[Tensor] = field(default_factory=list)
    """The estimates per token, shape (G,)."""

    @classmethod
    def of(cls, models: Models, group: Group, numbers, candidate: Candidate, repeats: int, seed: int, chosen) -> _Seen:
        seen = cls()
        for step in range(repeats):
            seen._add(models, group, numbers, candidate, seed, step, chosen)
        return seen

    def _add(self, models: Models, group: Group, numbers, candidate: Candidate, seed: int, step: int, chosen) -> None:
        policy, estimator, loss = models.policy, candidate.estimator, candidate.loss
        draws = other = estimator.draw(policy, group.responses, numbers, seed=seed, step=step)
        if not candidate.shared:
            other = estimator.draw(policy, group.responses, numbers, seed=seed + OTHER_SEED, step=step)
        current = draws.values(policy)
        is_current = models.old is None and candidate.shared
        old = current if is_current else other.values(models.old if models.old is not None else policy)
        reference = None if models.reference is None else other.values(models.reference)
        advantages, scored = group.advantages.to(current), draws.scored
        found, slopes = loss.with_slopes(current, old, reference, advantages, draws.tokens, scored)
        share = 1 / (scored.sum().clamp(min=1) if loss.mean == "token" else len(current))
        gradient = gradient_of(draws.parts(policy, slopes * share), chosen)
        self.repeats.add(gradient, loss=float(found.value.double().sum() * share))
        self.ratios.append(ratios_of(loss, current, old, reference, draws.tokens, scored))
        self.log_ratios.append(_per_token(current - old, draws))
        self.likelihoods.append(_per_token(current, draws))

    def figures(self, truth: _Seen, loss: GRPOLoss, advantages: Tensor) -> list[float]:
        """The fields of :class:`GroupNoise` of one prompt, in their order."""
        own, exact = self.repeats, truth.repeats
        value = float(own.of("loss").mean())

        def at_mean(left_out: int | None) -> float:
            return loss_at_mean(loss, [r for i, r in enumerate(self.ratios) if i != left_out], advantages)

        offset = torch.stack(self.likelihoods).mean(0) - torch.stack(truth.likelihoods).mean(0)
        return [
            float(torch.stack(self.log_ratios).var(0).mean()),
            own.variance("loss"),
            own.gradient_variance,
            excess(own.count, value, at_mean),
            value,
            float(offset.mean()),
            own.signal,
            float(own.total @ exact.total) / (own.count * exact.count),
            exact.signal,
        ]


def _per_token(values: Tensor, draws: Draws) -> Tensor:
    """Estimates in nats per token that they are of, shape (G,), float64, on the CPU."""
    values, scored = values.double().cpu(), draws.scored
    if scored is None:
        return values.mean(1) / draws.tokens.cpu()
    scored = scored.cpu()
    return (values * scored).sum(1) / scored.sum(1).clamp(min=1)
