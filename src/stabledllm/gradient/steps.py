"""The noise of training steps' gradients, raw, clipped and as Adam's update, measured on steps that are drawn.

Every figure comes from inner products of whole step gradients, so that a squared mean is a mean over pairs of
different steps. ``update`` is the clipped gradient g over ``sqrt(beta2 v + (1 - beta2) g²)``, v the second moment so
far: as in Adam the step's own square counts, so that no coordinate exceeds ``1 / sqrt(1 - beta2)``. With v alone, the
gradient of a token that v has not seen would be divided by Adam's eps, and would be all of the variance.

Legend: S steps, n rows of a step, D coordinates (k of a sketch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stabledllm.gradient.bounded import cosine
from stabledllm.gradient.components import UNIT, as_positive, heavy_tail
from stabledllm.gradient.projected import projection_error
from stabledllm.stats.estimate import Estimate, student
from stabledllm.stats.intervals import UNKNOWN, Ends, Ratio, of_estimated_ratio, of_sum, of_variance, tail_of, widest
from stabledllm.stats.jackknife import LEAST_ROWS, jackknife, leave_one_out, spread
from stabledllm.stats.pareto import pareto_k
from stabledllm.variance.predicted import at_equal_compute

_AVERAGED = 0.75
"""A squared deviation averages so large a power of the number of directions: 1 where the coordinates of a step vary
independently, 0 where all of them do together. Chosen by simulation (``studies/coverage``)."""
_MOST_UNKNOWN = 1e4
"""Largest ratio of an upper end to its estimate that is reported."""
TRANSFORMS = ("raw", "clipped", "update")
_UNITS = {"raw": UNIT, "clipped": UNIT, "update": ""}


@dataclass(frozen=True)
class StepGradients:
    """Inner products of S step gradients under each transform, float64, (S, S); steps of n rows at ``cost`` each.

    >>> apart = StepGradients({"raw": torch.eye(4) + 1}, rows=2, cost=1.0, clipped_share=0.0)
    >>> apart.variance().value, apart.mean_square().value
    (1.0, 1.0)
    """

    gram: dict[str, Tensor]
    rows: int
    cost: float
    clipped_share: float
    """Share of the steps whose gradient norm was above the clip."""
    blocks: dict[str, Tensor] = field(default_factory=dict)
    """The inner products by block of a projection, (Q, S, S), each unbiased by itself; empty where they are exact."""

    def by_block(self, transform: str) -> Tensor:
        """Inner products by block of the projection, (Q, S, S); Q is 1 where they are exact."""
        return self.blocks[transform] if self.blocks else self.gram[transform][None]

    def variance(self, transform: str = "raw") -> Estimate:
        """tr Var(step gradient), unbiased; jackknife over steps."""
        return self._with_tail(self._estimate(_variance, transform, _UNITS[transform]), transform)

    def per_row_variance(self) -> Estimate:
        """n tr Var(step gradient) of the raw gradient."""
        return self._with_tail(self._estimate(lambda k: self.rows * _variance(k), "raw", UNIT), "raw")

    def mean_square(self, transform: str = "raw") -> Estimate:
        """Squared norm of the mean step gradient, from pairs of different steps."""
        return self._estimate(_mean_square, transform, _UNITS[transform])

    def noise_to_signal(self, transform: str = "raw") -> Estimate:
        """tr Var(step) / |mean|²; NaN where the estimate of |mean|² is not above 0."""
        return self._with_tail(self._estimate(_noise_to_signal, transform, ""), transform)

    def noise_scale(self) -> Estimate:
        """B_simple = n tr Var(step) / |G|² in rows (McCandlish et al., arXiv:1812.06162), from the drawn steps."""
        return self._with_tail(self._estimate(lambda k: self.rows * _noise_to_signal(k), "raw", "rows"), "raw")

    def at_equal_compute(self, data_noise: Estimate) -> Estimate:
        """``F Var(step of F forwards) - C``, C being that of Standard's gradient."""
        return replace(at_equal_compute(self.per_row_variance(), self.cost, data_noise), unit=UNIT)

    def clipping_cosine(self) -> Estimate:
        """Cosine of the mean clipped and the mean raw gradient, 1 where clipping leaves its direction as it is.

        NaN where an estimated squared norm is not above 0; the interval is all of [-1, 1] where one may be 0.
        """
        return cosine(*self.clipping_products())

    def clipping_products(self) -> tuple[Tensor, list[Tensor]]:
        """Product and squared norms of the mean clipped and raw gradients, (3,), from pairs of different steps; and the
        same without each step, (S, 3), and without each block of a projection."""
        raw, clipped = (self.gram[t].diagonal() for t in ("raw", "clipped"))
        factor = torch.where(raw > 0, (clipped / raw).sqrt(), 1.0)

        def figures(keep: Tensor, gram: Tensor = self.gram["raw"]) -> list[float]:
            k, f = gram[keep][:, keep], factor[keep]
            return [_mean_square(k * f), _mean_square(k), _mean_square(f[:, None] * k * f)]

        every, blocks = torch.arange(len(factor)), self.by_block("raw")
        left_out = [leave_one_out(figures, len(factor))]
        if len(blocks) > 1:
            left_out.append(leave_one_out(lambda keep: figures(every, blocks[keep].mean(0)), len(blocks)))
        return _float64(figures(every)), [_float64(each) for each in left_out]

    def as_dict(self) -> dict:
        """JSON form; ``heavy_tail`` marks the transforms whose errors cannot be trusted."""
        return {
            "rows": self.rows,
            "steps": len(self.gram["raw"]),
            "cost": self.cost,
            "clipped_share": self.clipped_share,
            "clipping_cosine": self.clipping_cosine().as_dict(),
            "noise_scale": self.noise_scale().as_dict(),
            **{t: self._part(t) for t in self.gram},
        }

    def _part(self, transform: str) -> dict:
        k = self.pareto_k(transform)
        return {
            "variance": self.variance(transform).as_dict(),
            "mean_square": self.mean_square(transform).as_dict(),
            "noise_to_signal": self.noise_to_signal(transform).as_dict(),
            "pareto_k": k if math.isfinite(k) else None,
            "heavy_tail": heavy_tail(k),
        }

    def pareto_k(self, transform: str = "raw") -> float:
        """Pareto-k of the steps' squared deviations; NaN for too few steps."""
        k = self.gram[transform]
        deviations = k.diagonal() - 2 * k.mean(1) + k.mean()
        return pareto_k(deviations.clamp(min=0).numpy())

    def _with_tail(self, estimated: Estimate, transform: str) -> Estimate:
        """The estimate of a multiple of the variance, with an interval that holds for few steps of a skewed law too."""
        own = as_positive(estimated)
        unequal = _of_unequal_steps(self.gram[transform], estimated.value)
        if unequal is None:
            return replace(own, stderr=math.nan, ends=None)
        low, high = widest(own.interval(), _of_few_steps(self.gram[transform], estimated.value), unequal)
        return own if math.isnan(low) else replace(own, ends=(low, high))

    def _estimate(self, statistic: Callable[[Tensor], float], transform: str, unit: str) -> Estimate:
        k = self.gram[transform]
        of_steps = jackknife(lambda keep: statistic(k[keep][:, keep]), len(k), unit)
        of_blocks = projection_error([self.by_block(transform)], statistic)
        return replace(of_steps, stderr=math.hypot(of_steps.stderr, of_blocks))


def ratio(one: StepGradients, other: StepGradients, transform: str) -> Ratio:
    """One method's tr Var(step) / |mean|² over another's, with a 95 % interval by a joint jackknife over steps.

    Step s has the same data rows and random numbers in both, for as many rows as both have, so that both are left out
    together.
    NaN where too few steps were drawn for an estimate of |mean|² above 0.

    >>> steps = StepGradients({"raw": torch.eye(4) + 1}, rows=2, cost=1.0, clipped_share=0.0)
    >>> ratio(steps, steps, "raw").value
    1.0
    """
    a, b = one.gram[transform], other.gram[transform]
    steps = min(len(a), len(b))
    value = _noise_to_signal(a) / _noise_to_signal(b)
    left_out = _left_out(_noise_to_signal, a[:steps, :steps]) / _left_out(_noise_to_signal, b[:steps, :steps])
    projection = projection_error(
        [gradients.by_block(transform) for gradients in (one, other)],
        lambda top, bottom: _noise_to_signal(top) / _noise_to_signal(bottom),
    )
    return of_estimated_ratio(Estimate(value=value, stderr=math.hypot(spread(left_out), projection), n=steps))


def variance_covariance(one: StepGradients, other: StepGradients) -> float:
    """Covariance of two methods' n tr Var(step gradient), by a joint jackknife over steps as in :func:`ratio`.

    >>> steps = StepGradients({"raw": torch.tensor([1.0, 1.2, 0.9, 1.1]).diag()}, 2, 1.0, 0.0)
    >>> abs(variance_covariance(steps, steps) - steps.per_row_variance().stderr ** 2) < 1e-9
    True
    """
    a, b = one.gram["raw"], other.gram["raw"]
    n = min(len(a), len(b))
    left = [_left_out(_variance, k[:n, :n]) * rows for k, rows in ((a, one.rows), (b, other.rows))]
    return float(((left[0] - left[0].mean()) * (left[1] - left[1].mean())).sum()) * (n - 1) / n


def _float64(numbers: Sequence) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _variance(k: Tensor) -> float:
    n = len(k)
    return float((k.trace() - k.sum() / n) / (n - 1))


def _mean_square(k: Tensor) -> float:
    n = len(k)
    return float((k.sum() - k.trace()) / (n * (n - 1)))


def _of_few_steps(k: Tensor, value: float) -> Ends:
    """The chi-square interval of ``value``, a multiple of the variance of steps with these inner products.

    It is that of a drawn loss's variance (:func:`~stabledllm.stats.intervals.tail_of`), for a vector: as many numbers
    are averaged as there are directions with noise, ``(tr Σ)² / tr Σ²``.
    """
    n, (squares, directions) = len(k), _deviations(k)
    if not float(squares.sum()) > 0:
        return UNKNOWN
    tail = tail_of(squares, n, directions**_AVERAGED)
    freedom = (n - 1) * directions
    return of_variance(value, value * ((tail + 2 / directions) / n) ** 0.5, freedom)


def _of_unequal_steps(k: Tensor, value: float) -> Ends | None:
    """The interval of ``value``, a multiple of the variance, where steps differ in size, as when a rare row is large.

    Beyond what normal noise in so many directions makes them differ, their squares are taken for log-normal: the
    interval of such a law's mean, with the logarithm's mean and variance unknown. ``value`` alone where they do not
    differ beyond that. None where the upper end exceeds :data:`_MOST_UNKNOWN`: few steps cannot tell how large a rarer
    one is.

    Source: Zou, Huo and Taleban (2009).
    """
    n, (squares, directions) = len(k), _deviations(k)
    if n < LEAST_ROWS or not value > 0 or not float(squares.min()) > 0:
        return value, value
    own = (squares - squares.mean() / (n - 1)) * n / (n - 2)  # without what the other steps moved the mean by
    logs = torch.maximum(own, squares / 2).log()
    beyond = float(logs.var() - torch.special.polygamma(1, torch.tensor(directions / 2, dtype=torch.float64)))
    if beyond <= 0:
        return value, value
    half = student(n - 1) * (beyond / n) ** 0.5
    low, high = of_sum([(0.0, (-half, half)), (beyond / 2, of_variance(beyond / 2, 0.0, n - 1))])
    if high - beyond / 2 > math.log(_MOST_UNKNOWN):
        return None
    return value * math.exp(low - beyond / 2), value * math.exp(high - beyond / 2)


def _deviations(k: Tensor) -> tuple[Tensor, float]:
    """The steps' squared deviations from their mean, (S,), and the number of directions with noise, at least 1."""
    n = len(k)
    centred = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    squares = centred.diagonal()
    same = float((centred**2).sum() - (squares**2).sum()) / (n * (n - 1))
    return squares, max(_variance(k) ** 2 / max(same, 1e-300), 1.0)


def _noise_to_signal(k: Tensor) -> float:
    signal = _mean_square(k)
    return _variance(k) / signal if signal > 0 else math.nan


def _left_out(statistic: Callable[[Tensor], float], k: Tensor) -> Tensor:
    return _float64(leave_one_out(lambda keep: statistic(k[keep][:, keep]), len(k)))
