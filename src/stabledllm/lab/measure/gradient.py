"""The gradient's part of ``stabledllm decompose``: A, B and C, and every method's noise, predicted and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.components import (
    GradientDecomposition,
    PairMean,
    decompose_gradient,
    heavy_tail,
    noise_scale,
)
from stabledllm.gradient.floor import GradientFloor, gradient_floor
from stabledllm.gradient.mask_split import MaskSplit, split_masks
from stabledllm.gradient.nested_masks import nested_masks
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.predicted import (
    StepNoise,
    at_equal_compute,
    data_noise,
    profile_method,
    ratio_to,
    step_noise,
    uniform_for,
)
from stabledllm.gradient.profile import GradientProfile, gradient_profile
from stabledllm.gradient.sketch import GradientMeter, ProjectedGradients
from stabledllm.gradient.step_meter import StepMeter
from stabledllm.gradient.steps import StepGradients, ratio
from stabledllm.lab.measure.gradient_notes import notes_of_rows
from stabledllm.lab.measure.options import DecomposeOptions
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio
from stabledllm.variance.comparison import may_be_equal
from stabledllm.variance.drawn import step_rows

_EXACT_BYTES = 2**29
"""Most memory that a row's exact gradients may take; larger ones are projected."""
_POINTS = 48
"""About as many gradients of a row are in memory at once."""


class GradientLaboratory:
    """The gradient's measurements of one model and data set; profiles are measured once and kept."""

    kinds: tuple[type, type] = (RowGradients, ProjectedGradients)
    """The meters of exact gradients and of projections."""
    unknown: tuple[str, ...] = ()
    """The entries of the record that cannot be known of such rows, and are null."""

    def __init__(
        self,
        options: DecomposeOptions,
        loaded: MeteredModel,
        rows: Sequence[TokenRow],
        standard: Method,
        progress: Callable[[int], None],
        sized: Mapping[str, int] | None = None,
    ):
        self.options, self.grad, objective = options, options.grad, standard.objective
        self.standard = standard
        self.counts = profile_method(standard)
        """The method whose profile stands for Standard's masks: that of fixed counts."""
        common = {"progress": progress, "parameters": self.grad.parameters, **(sized or {})}
        self.meter: GradientMeter = gradient_meter(self.grad.projection, loaded, rows, objective, common, self.kinds)
        self.steps = StepMeter(loaded, rows, objective, clip=self.grad.clip, **common)
        self._profiles: dict[Method, GradientProfile] = {}
        self._standard: StepGradients | None = None
        self._cost = 1.0
        """Standard's forwards per row."""

    def profile(self, method: Method) -> GradientProfile:
        """The profile of a method's masker and views, measured at the first call."""
        if method not in self._profiles:
            self._profiles[method] = gradient_profile(
                self.meter,
                method,
                rows=self.rows_of(method),
                rates=self.grad.rates,
                masks=self.grad.masks,
                seed=self.options.seed,
            )
        return self._profiles[method]

    def rows_of(self, method: Method) -> int:
        """The rows that a profile is measured on: fewer than Standard's where a method has one of its own."""
        return self.grad.rows if method == self.counts else min(self.grad.view_rows, self.grad.rows)

    def decomposition(self) -> GradientDecomposition:
        """A, B and C of Standard's gradient."""
        return decompose_gradient(self.profile(self.counts))

    def floor(self) -> GradientFloor | None:
        """The least noise that any density of t can reach with one view a row; None where it is not known."""
        return gradient_floor(self.profile(self.counts))

    def split(self) -> MaskSplit | None:
        """What A is made of, on some of the rows of :meth:`decomposition`; None where it was not asked for."""
        rows = min(self.grad.split_rows, self.grad.rows)
        if not rows:
            return None
        return split_masks(nested_masks(self.meter, self.profile(self.counts).first(rows), self.options.seed))

    def notes(
        self, parts: GradientDecomposition, floor: GradientFloor | None, entries: Sequence[dict]
    ) -> Iterator[str]:
        """Yields what the record says of the gradient's figures, those of the methods in ``entries``."""
        return notes_of_rows(parts, floor, entries)

    def further(self, measured: dict) -> dict:
        """The entries of the record that only such rows have, beside those in ``measured``."""
        return {}

    def result(self, method: Method, sampler: TSampler, cost: float) -> dict:
        """The entry ``gradient`` of one method in ``decomposition.json``; that of Standard must be measured first."""
        rows = step_rows(method, self.options.forwards, cost)
        measured = self.steps.measure(method, sampler, rows=rows, steps=self.grad.steps, seed=self.options.seed)
        if self._standard is None:
            self._standard, self._cost = measured, cost
        k, variance = measured.pareto_k(), measured.per_row_variance()
        predicted, entry = self._predicted(method, sampler, rows, cost)
        return entry | {
            "measured_variance": variance.as_dict(),
            "drawn_steps_agree": None if predicted is None else may_be_equal(variance, predicted),
            "measured_relative_to_standard": ratio(measured, self._standard, "raw").as_dict(),
            **{
                kind: {
                    "relative_to_standard": ratio(measured, self._standard, kind).as_dict(),
                    "noise_to_signal": measured.noise_to_signal(kind).as_dict(),
                }
                for kind in ("clipped", "update")
            },
            "clipped_share": measured.clipped_share,
            "pareto_k": k,
            "heavy_tail": heavy_tail(k),
        }

    def _predicted(
        self, method: Method, sampler: TSampler, rows: int, cost: float
    ) -> tuple[Estimate | None, dict[str, dict | None]]:
        """The predicted variance, and the entries on it and its ratio to Standard's, both from the same data rows."""
        if profile_method(method) is None:
            names = ("predicted_variance", "variance_at_equal_compute", "relative_to_standard", "noise_scale")
            return None, dict.fromkeys(names)
        noise, standard, common = self.noise(method, sampler, rows, cost)
        data = data_noise(common)
        relative = Ratio(1.0, 1.0, 1.0) if method.name == "standard" else ratio_to(noise, standard, data)
        predicted = noise.estimate()
        return predicted, {
            "predicted_variance": predicted.as_dict(),
            "variance_at_equal_compute": at_equal_compute(noise, data).as_dict(),
            "relative_to_standard": relative.as_dict(),
            "noise_scale": noise_scale(noise.per_row, PairMean(common), noise.rows).as_dict(),
        }

    def noise(
        self, method: Method, sampler: TSampler, rows: int, cost: float
    ) -> tuple[StepNoise, StepNoise, GradientProfile]:
        """The noise that is predicted of a method, and of Standard on the same data rows, and the profile of these."""
        own, plain = self.profile(profile_method(method)), self.profile(self.counts)
        common = plain.first(len(own.rows)) if len(own.rows) < len(plain.rows) else plain
        noise = step_noise(own, method, uniform_for(own, sampler), rows, cost, common)
        standard = step_noise(common, self.standard, uniform_for(common), self.options.forwards, self._cost)
        return noise, standard, common


def gradient_meter(
    projection: str,
    loaded: MeteredModel,
    rows: Sequence[TokenRow],
    objective: Objective,
    arguments: dict,
    kinds: tuple[type, type] = (RowGradients, ProjectedGradients),
) -> GradientMeter:
    """A meter of exact gradients, or of projections, of ``kinds``: as asked for, or by their size."""
    size = sum(p.numel() for p in chosen_parameters(loaded.model, arguments["parameters"]).values())
    exact = projection == "exact" or (projection == "auto" and size * 4 * _POINTS <= _EXACT_BYTES)
    return kinds[0 if exact else 1](loaded, rows, objective, **arguments)
