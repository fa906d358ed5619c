"""What the noise of the four bounds does to a preference step: to margin, loss and gradient, by estimator.

A pair is held fixed and its noise drawn again and again; the figures are means over pairs, their intervals are over
pairs. Compare VRPO (arXiv:2505.19223), table 1.

Legend: Q pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.likelihood.compared import MeasuredNoise
from stabledllm.likelihood.repeated import OTHER_SEED, BetweenItems, Repeats, excess, gradient_of
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.schedule import EPS
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss

QUANTITIES = ("margin", "loss", "gradient")


@dataclass(frozen=True)
class Candidate:
    """An estimator to be measured.

    Args:
        shared: whether policy and reference see the same draws, as in training here.
    """

    name: str
    estimator: BoundEstimator
    shared: bool = True


def vrpo(ratios: int, masks: int = 1, *, shared: bool = True, eps: float = EPS) -> Candidate:
    """VRPO's estimator: ``ratios`` mask ratios (its n_t) of ``masks`` masks each (its n_yt), so many forwards in all.

    >>> vrpo(2, 2).name, vrpo(2, 2).estimator.budget, vrpo(4, shared=False).name
    ('2 ratios x 2 masks', 4, '4 ratios x 1 mask, draws not shared')
    """
    method = "standard" if masks == 1 else f"multisample{masks}"
    name = f"{ratios} ratio{'s' * (ratios > 1)} x {masks} mask{'s' * (masks > 1)}{', draws not shared' * (not shared)}"
    return Candidate(name, BoundEstimator(method, ratios * masks, eps=eps), shared)


@dataclass(frozen=True)
class PairNoise(MeasuredNoise):
    """The noise of one estimator. Every quantity is given for each pair, shape (Q,), float64.

    >>> of_two = torch.tensor([1.0, 3.0])
    >>> noise = PairNoise("standard", 4, of_two, of_two, of_two, of_two)
    >>> print(noise.mean("margin"))
    2 ± 1 (n=2)
    >>> noise.over(noise, "margin").value
    1.0
    """

    QUANTITIES: ClassVar[tuple[str, ...]] = QUANTITIES
    FIGURES: ClassVar[tuple[str, ...]] = ("bias", "value")

    margin: Tensor
    """Variance of the margin over the noise."""
    loss: Tensor
    """Variance of the loss."""
    gradient: Tensor
    """Variance of the gradient: the sum over the coordinates that are measured."""
    bias: Tensor
    """How much the mean loss exceeds the loss at the mean margin."""
    value: Tensor = field(default_factory=lambda: torch.full((1,), math.nan))
    """The mean loss."""
    between: float = math.nan
    """Variance between pairs of the mean gradient, which no draws lower."""


def measure_pairs(
    policy,
    reference,
    pairs: Sequence[Pair],
    candidates: Sequence[Candidate],
    loss: DPOLoss,
    *,
    repeats: int = 8,
    seed: int = 0,
    parameters: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda pairs: None,
) -> list[PairNoise]:
    """Measure the noise of estimators on the same pairs, in evaluation mode; the models are left as they were.

    Unbiased for each pair, but for the bias of the loss, of which a part of the order of 1 / repeats² is left.

    Args:
        repeats: steps that each pair is drawn in, at least 2. parameters: patterns of names of the policy's parameters
            whose gradient is measured; without them all that are trained.
        progress: called with 1 when a pair of a candidate is done.

    Raises:
        UserError: fewer than 2 repeats, no pair, no such parameters, or what the estimators refuse.
    """
    if repeats < 2 or not pairs:
        raise UserError(f"preferences: expected pairs and at least 2 repeats, found {len(pairs)} and {repeats}.")
    chosen = list(chosen_parameters(policy, parameters).values())
    found = []
    with evaluating(policy), evaluating(reference):
        for candidate in candidates:
            figures, between = [], BetweenItems()
            for number, pair in enumerate(pairs):
                seen = _one_pair(policy, reference, pair, number, candidate, loss, repeats, seed, chosen)
                figures.append(_figures(seen))
                between.add(seen)
                progress(1)
            columns = torch.tensor(figures, dtype=torch.float64).unbind(1)
            found.append(PairNoise(candidate.name, candidate.estimator.budget, *columns, between=between.variance))
    return found


def _one_pair(policy, reference, pair, number, candidate, loss, repeats, seed, chosen) -> Repeats:
    seen = Repeats()
    for step in range(repeats):
        draws = candidate.estimator.draw(policy, [pair], [number], seed=seed, step=step)
        other = draws
        if not candidate.shared:
            other = candidate.estimator.draw(reference, [pair], [number], seed=seed + OTHER_SEED, step=step)
        result, slopes = loss.with_slopes(draws.values(policy), other.values(reference), draws.tokens)
        gradient = gradient_of(draws.parts(policy, slopes), chosen)
        seen.add(gradient, margin=float(result.margin), loss=float(result.value))
    return seen


def _figures(seen: Repeats) -> list[float]:
    """The fields of :class:`PairNoise` of one pair, in their order."""
    margins = seen.of("margin")

    def at_mean(left_out: int | None) -> float:
        kept = margins if left_out is None else torch.cat([margins[:left_out], margins[left_out + 1 :]])
        return float(F.softplus(-kept.mean()))

    bias = excess(seen.count, float(F.softplus(-margins).mean()), at_mean)
    value = float(seen.of("loss").mean())
    return [seen.variance("margin"), seen.variance("loss"), seen.gradient_variance, bias, value]
