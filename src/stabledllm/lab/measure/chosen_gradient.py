"""The gradient's part of ``stabledllm decompose`` where the model chooses the masked tokens, as under LIFT and GIFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from torch import Tensor

from stabledllm.gradient.components import GradientDecomposition
from stabledllm.gradient.paired import (
    GivenHiddenProjectedGradients,
    GivenHiddenRowGradients,
    PairedRates,
    paired_rates,
)
from stabledllm.gradient.predicted import StepNoise, profile_method, step_noise, uniform_for
from stabledllm.gradient.profile import GradientProfile
from stabledllm.lab.measure.gradient import GradientLaboratory
from stabledllm.lab.measure.gradient_notes import notes_of_chosen
from stabledllm.lab.measure.options import GradientOptions
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method


class ChosenGradientLaboratory(GradientLaboratory):
    """The gradient's measurements where gradients of exact counts say nothing of Standard's.

    A, B and C are measured on Standard's own masks, two at each t, and so are methods of independent masks. Every other
    method has a profile of its own. Neither the least noise of a density nor what A is made of is known.
    """

    kinds = (GivenHiddenRowGradients, GivenHiddenProjectedGradients)
    unknown = ("floor", "split")

    @cached_property
    def paired(self) -> PairedRates:
        """Standard's gradients, two masks at each t."""
        sizes = {"rows": self.grad.rows, "rates": self.grad.rates, "seed": self.options.seed}
        return paired_rates(self.meter, self.standard, **sizes)

    def profile(self, method: Method) -> GradientProfile:
        """The profile of a method's masker and views, measured at the first call; Standard's is :attr:`paired`."""
        return self.paired.profile if method == self.counts else super().profile(method)

    def rows_of(self, method: Method) -> int:
        """The rows that a profile is measured on: fewer where a method has several views."""
        return rows_of(method, self.grad)

    def decomposition(self) -> GradientDecomposition:
        """A, B and C of Standard's gradient; A holds what the choice is drawn with."""
        return self.paired.decomposition()

    def floor(self) -> None:
        """None: which density is best is not known from counts."""

    def split(self) -> None:
        """None: the model chooses the masks, so that targets and context are not apart."""

    def notes(self, parts: GradientDecomposition, floor: None, entries: Sequence[dict]) -> Iterator[str]:
        """Yields what the record says of the gradient's figures, those of the methods in ``entries``."""
        return notes_of_chosen(parts, entries, self.standard.objective.tokens)

    def noise(
        self, method: Method, sampler: TSampler, rows: int, cost: float
    ) -> tuple[StepNoise, StepNoise, GradientProfile]:
        """The noise that is predicted of a method, and of Standard on the same data rows, and the profile of these."""
        profiled = profile_method(method)
        own = self.profile(profiled)
        common = self.paired.first(len(own.rows))
        second = self._second(common, method.views.count) if profiled == self.counts else None
        noise = step_noise(own, method, uniform_for(own, sampler), rows, cost, second_moment=second)
        every = uniform_for(common.profile)
        plain = self._second(common, 1)
        standard = step_noise(
            common.profile, self.standard, every, self.options.forwards, self._cost, second_moment=plain
        )
        return noise, standard, common.profile

    @staticmethod
    def _second(paired: PairedRates, views: int) -> Callable[[TSampler], Tensor]:
        return lambda sampler: paired.moments(sampler, views).second


def rows_of(method: Method, grad: GradientOptions) -> int:
    """The rows that a method with a profile of its own is measured on: fewer where it has several views.

    >>> [rows_of(Method.parse(text), GradientOptions()) for text in ("fixedcount", "mirror")]
    [384, 16]
    """
    return grad.rows if method.views.count == 1 else min(grad.view_rows, grad.rows)
