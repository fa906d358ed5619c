"""Estimators measured on the same items (pairs, prompts): their noise, its ratios, and which is surely less noisy.

Legend: Q items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio, of_estimated_ratio, of_ratio
from stabledllm.stats.jackknife import jackknife


@dataclass(frozen=True)
class MeasuredNoise:
    """The noise of one estimator; every quantity is a field of its own, given for each item, shape (Q,), float64.

    >>> import torch
    >>> class LossNoise(MeasuredNoise):
    ...     QUANTITIES, loss = ("loss",), torch.tensor([1.0, 3.0])
    >>> two, four = LossNoise("one", 2), LossNoise("other", 4)
    >>> print(two.mean("loss"), four.over(two, "loss").value)
    2 ± 1 (n=2) 2.0
    """

    QUANTITIES: ClassVar[tuple[str, ...]] = ()
    """Fields that are compared, all of them variances over the noise."""
    FIGURES: ClassVar[tuple[str, ...]] = ()
    """Other fields that are stored."""

    name: str
    forwards: int
    """Forward rows of the policy for each response; another model takes as many, unless its values are kept."""

    def mean(self, quantity: str) -> Estimate:
        """The mean over items of a quantity, with its error over items."""
        return over_items(getattr(self, quantity))

    def over(self, other: MeasuredNoise, quantity: str) -> Ratio:
        """A variance over that of another estimator on the same items at equal forwards, with Fieller's interval.

        A variance falls as the forwards of independent draws grow, so that each is multiplied by its own forwards.
        """
        top, bottom = getattr(self, quantity) * self.forwards, getattr(other, quantity) * other.forwards

        def difference(r: float) -> tuple[float, float]:
            return over_items(top - r * bottom).interval()

        return of_ratio(float(top.mean() / bottom.mean()) if float(bottom.mean()) > 0 else math.nan, difference)

    def p_of_less(self, other: MeasuredNoise, quantity: str) -> float:
        """The two-sided p value of "as noisy as the other at equal forwards", by the t test paired over items.

        1 where it is not less noisy on average or no error is known, so that it agrees with the interval of
        :meth:`over`, of which it asks whether 1 is in it.
        """
        top, bottom = getattr(self, quantity) * self.forwards, getattr(other, quantity) * other.forwards
        return p_below_zero(over_items(top - bottom))

    def as_dict(self) -> dict:
        """The JSON form."""
        means = {name: self.mean(name).as_dict() for name in (*self.QUANTITIES, *self.FIGURES)}
        return {"name": self.name, "forwards": self.forwards, **means}


def of_positive_ratio(top: Sequence[Tensor], bottom: Sequence[Tensor]) -> Ratio:
    """The ratio of two products of means over items, with an interval by the jackknife; unknown where a mean is not
    above 0.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> of_positive_ratio((x, x), (x,)).value
    2.5
    """

    def ratio(keep: Tensor) -> float:
        means = [[float(x[keep].mean()) for x in side] for side in (top, bottom)]
        return math.prod(means[0]) / math.prod(means[1]) if all(m > 0 for side in means for m in side) else math.nan

    return of_estimated_ratio(jackknife(ratio, len(top[0]), ""))


def over_items(each: Tensor) -> Estimate:
    """The mean over items with its error; the error of one item is NaN.

    >>> import torch
    >>> print(over_items(torch.tensor([1.0, 3.0])))
    2 ± 1 (n=2)
    """
    error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    return Estimate(value=float(each.mean()), stderr=error, n=len(each))


def p_below_zero(difference: Estimate) -> float:
    """The two-sided p value of a difference of 0, where it is below 0 on average; else 1.

    >>> round(p_below_zero(Estimate(value=-2.262, stderr=1.0, n=10)), 3)
    0.05
    """
    from scipy import special  # here, as importing the package loads torch only

    if not (difference.value < 0 and difference.stderr > 0):
        return 1.0
    return 2 * float(special.stdtr(difference.n - 1, difference.value / difference.stderr))
