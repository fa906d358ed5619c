"""What the noise of the four bounds does to a preference step: to margin, loss and gradient, by estimator.

A pair is held fixed and its noise drawn again and again; the figures are means over pairs, their intervals are over
pairs. Compare VRPO (arXiv:2505.19223), table 1.

Legend: Q pairs, S repeats, D coordinates of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.models.evaluating import evaluating
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio, of_ratio

_OTHER_SEED = 1 << 32
"""Added to the seed for a reference with draws of its own."""
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


@dataclass(frozen=True)
class PairNoise:
    """The noise of one estimator. Every quantity is given for each pair, shape (Q,), float64."""

    name: str
    forwards: int
    """Forward rows of the policy for each response; a reference that is not stored takes as many."""
    margin: Tensor
    """Variance of the margin over the noise."""
    loss: Tensor
    """Variance of the loss."""
    gradient: Tensor
    """Variance of the gradient: the sum over the coordinates that are measured."""
    bias: Tensor
    """How much the mean loss exceeds the loss at the mean margin."""

    def mean(self, quantity: str) -> Estimate:
        """The mean over pairs of a quantity.

        >>> of_two = torch.tensor([1.0, 3.0])
        >>> print(PairNoise("standard", 4, of_two, of_two, of_two, of_two).mean("margin"))
        2 ± 1 (n=2)
        """
        return _over_pairs(getattr(self, quantity))

    def over(self, other: PairNoise, quantity: str) -> Ratio:
        """A quantity's mean over that of another estimator on the same pairs, with Fieller's interval.

        >>> of_two = torch.tensor([1.0, 3.0])
        >>> noise = PairNoise("standard", 4, of_two, of_two, of_two, of_two)
        >>> noise.over(noise, "margin").value
        1.0
        """
        top, bottom = getattr(self, quantity), getattr(other, quantity)

        def difference(r: float) -> tuple[float, float]:
            return _over_pairs(top - r * bottom).interval()

        return of_ratio(float(top.mean() / bottom.mean()) if float(bottom.mean()) > 0 else math.nan, difference)

    def as_dict(self) -> dict:
        """The JSON form."""
        means = {name: self.mean(name).as_dict() for name in (*QUANTITIES, "bias")}
        return {"name": self.name, "forwards": self.forwards, **means}


def _over_pairs(each: Tensor) -> Estimate:
    error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    return Estimate(value=float(each.mean()), stderr=error, n=len(each))


@dataclass
class _Sums:
    """What is kept of one pair's repeats."""

    margins: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    total: Tensor | float = 0.0
    squares: float = 0.0

    def add(self, margin: float, loss: float, gradient: Tensor) -> None:
        self.margins.append(margin)
        self.losses.append(loss)
        self.total = self.total + gradient
        self.squares += float(gradient @ gradient)

    def figures(self) -> list[float]:
        n = len(self.margins)
        margins, losses = (torch.tensor(x, dtype=torch.float64) for x in (self.margins, self.losses))
        gradient = (self.squares - float(self.total @ self.total) / n) / (n - 1)
        # The loss at the mean margin has a bias of its own, from the noise of that mean; the jackknife takes it off.
        at_mean = F.softplus(-margins.mean())
        left_out = F.softplus(-(margins.sum() - margins) / (n - 1)).mean()
        bias = F.softplus(-margins).mean() - (n * at_mean - (n - 1) * left_out)
        return [float(margins.var()), float(losses.var()), gradient, float(bias)]


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
            figures = []
            for number, pair in enumerate(pairs):
                figures.append(_one_pair(policy, reference, pair, number, candidate, loss, repeats, seed, chosen))
                progress(1)
            columns = torch.tensor(figures, dtype=torch.float64).unbind(1)
            found.append(PairNoise(candidate.name, candidate.estimator.budget, *columns))
    return found


def _one_pair(policy, reference, pair, number, candidate, loss, repeats, seed, chosen) -> list[float]:
    sums = _Sums()
    for step in range(repeats):
        draws = candidate.estimator.draw(policy, [pair], [number], seed=seed, step=step)
        other = draws
        if not candidate.shared:
            other = candidate.estimator.draw(reference, [pair], [number], seed=seed + _OTHER_SEED, step=step)
        result, slopes = loss.with_slopes(draws.values(policy), other.values(reference), draws.tokens)
        gradient = 0.0
        for part in draws.parts(policy, slopes):
            gradient = gradient + torch.cat([g.flatten().double() for g in torch.autograd.grad(part, chosen)])
        sums.add(float(result.margin), float(result.value), gradient)
    return sums.figures()
