"""The measurements of one decomposition: probes, densities and drawn steps of one model and data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from stabledllm.data.rows import TokenRow, maskable_sizes
from stabledllm.forward.chosen import further_forwards
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.lab.measure.chosen_gradient import ChosenGradientLaboratory
from stabledllm.lab.measure.gradient import GradientLaboratory
from stabledllm.lab.measure.options import DecomposeOptions
from stabledllm.lab.measure.probe_and_fit import probe_and_fit
from stabledllm.lab.measure.progress import Progress
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.maskers import Masker
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.views import Views
from stabledllm.noise.windows import CHOSEN
from stabledllm.ppots.cells import WeighsBy, weights_of
from stabledllm.ppots.crossfit import CrossFit
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.profile import Profile, probe
from stabledllm.ppots.record import FittedDensity, fit_density
from stabledllm.stats.estimate import Estimate
from stabledllm.variance.comparison import MethodResult
from stabledllm.variance.components import NestedLosses, nested_losses
from stabledllm.variance.drawn import HEAVY_SHARE, measure, step_rows
from stabledllm.variance.low_rates import LowRates
from stabledllm.variance.predicted import per_row_variance


class Laboratory:
    """The measurements of one model and data set; each probe is measured once and kept."""

    block_size: int | None = None
    """Response tokens of a block, of a model in blocks."""

    def __init__(
        self,
        options: DecomposeOptions,
        loaded: MeteredModel,
        rows: Sequence[TokenRow],
        objective: Objective,
        progress: Progress,
        tokens_per_batch: int | None = None,
    ):
        self.options, self.loaded, self.rows, self.progress = options, loaded, rows, progress
        self.sized = {"tokens_per_batch": tokens_per_batch} if tokens_per_batch else {}
        """What every meter is told of the memory there is."""
        self.meter = self._meter(objective)
        self._profiles: dict[tuple[Masker, Views, bool], Profile] = {}
        self.low: LowRates | None = None
        """Standard's losses at small t, once A, B and C were measured."""
        self.drawn: dict[str, tuple[TSampler, float]] = {}
        """The density and the forwards per row of each measured method, by its name."""

    def _meter(self, objective: Objective) -> LossMeter:
        return LossMeter(self.loaded, self.rows, objective, progress=self._update, **self.sized)

    def _update(self, forwards: int) -> None:
        self.progress.update(forwards)

    def gradients(self, standard: Method) -> GradientLaboratory:
        """The laboratory of the gradient of the same model and rows."""
        kind = ChosenGradientLaboratory if standard.objective.tokens in CHOSEN else GradientLaboratory
        return kind(self.options, self.loaded, self.rows, standard, self.progress.update, self.sized)

    def nested(self, standard: Method) -> NestedLosses:
        """The nested design of A, B and C; the losses at small t that it shows are kept."""
        own = standard.objective.tokens == "gift"  # whose masks have other probabilities than p_mask
        nested = nested_losses(self.meter, standard, **self.design, some_masked=not own)
        self.low = LowRates.of(nested, self.meter.sizes(standard)[nested.rows], self.meter.objective)
        return nested

    @property
    def design(self) -> dict:
        """The sizes of the nested design, by name."""
        return {name: getattr(self.options, name) for name in ("rows", "rates", "masks", "seed", "design")}

    def further(self, nested: NestedLosses) -> dict:
        """The entries of the record that only such rows have."""
        return {}

    def profile(self, method: Method) -> Profile:
        """The probe of a method's masker and views, measured at the first call, whatever the source and the density."""
        key = (method.masker, method.views, method.syrm)
        if key not in self._profiles:
            sizes = self.options.probe
            self._profiles[key] = probe(
                self.meter,
                method,
                rows=sizes.rows,
                rates=sizes.rates,
                masks=sizes.masks,
                seed=self.options.seed,
                design=sizes.design,
            )
        return self._profiles[key]

    def fit_options(self, method: Method) -> FitOptions:
        """The options of the fit for a method."""
        probe = self.options.probe
        return FitOptions(
            starts=probe.starts,
            family=probe.family,
            uniform_share=probe.uniform_share,
            seed=self.options.seed,
            step_rows=step_rows(method, self.options.forwards, self.cost(method, Uniform())),
        )

    def cost(self, method: Method, sampler: TSampler) -> float:
        """Mean number of forwards of a row of the data."""
        size = maskable_sizes(self.rows, method)
        return method.views.mean_forwards(sampler, size) + further_forwards(method, sampler, size)

    def density(self, method: Method) -> FittedDensity:
        """The density fitted for the method's own source, masker and views."""
        if method.signal != "loss":
            return probe_and_fit(
                self.loaded,
                self.rows,
                method,
                self.options.probe,
                self.options.seed,
                self.fit_options(method).step_rows,
                progress=self.progress,
                tokens_per_batch=self.sized.get("tokens_per_batch"),
            )
        profile, options = self.profile(method), self.fit_options(method)
        return fit_density(profile, method, options, weighs_by=self._weights(method, profile))

    def _weights(self, method: Method, profile: Profile) -> WeighsBy:
        return weights_of(method, [self.rows[i] for i in profile.rows.tolist()])

    def result(self, method: Method, density: FittedDensity | None) -> MethodResult:
        """Predicted (cross-fitted) and measured variance of one method."""
        options, profile = self.options, self.profile(method)
        sampler = method.sampler(density.sampler if density else None)
        crossfit: CrossFit = [(sampler, torch.arange(len(profile.rows)))]
        if density and method.signal == "loss":
            crossfit = density.crossfit
        cost = self.cost(method, sampler)
        self.drawn[method.name] = sampler, cost
        rows = step_rows(method, options.forwards, cost)
        predicted = per_row_variance(profile.moments, method.source, crossfit, rows, self._weights(method, profile))
        measured = measure(self.meter, method, sampler, rows=rows, steps=options.steps, seed=options.seed, low=self.low)
        if self.low and method.masker.independent and self._seldom_seen(method, sampler, predicted):
            predicted = replace(predicted, stderr=math.nan, ends=None)
        return MethodResult(method.name, method.unbiased, measured, predicted, cost)

    def _seldom_seen(self, method: Method, sampler: TSampler, predicted: Estimate) -> bool:
        """Whether much of a variance comes from rates at which the probe's masks hardly ever hide a token."""
        return self.low.noise(method, sampler).value > HEAVY_SHARE * predicted.value
