"""Methods side by side, at equal compute."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.jackknife import jackknife
from stabledllm.ppots.profile import Profile
from stabledllm.variance.measured import Measured, variance_covariance
from stabledllm.variance.nested import UNIT, Decomposition, NestedLosses, components
from stabledllm.variance.predicted import at_equal_compute

_Z = 1.959963984540054


@dataclass(frozen=True)
class MethodResult:
    """What was found of one method."""

    method: str
    unbiased: bool
    measured: Measured
    predicted: Estimate | None
    """Predicted n Var(step loss)."""
    cost: float
    """Forwards per row."""


def compare_methods(results: list[MethodResult], data_noise: Estimate) -> list[dict]:
    """The ``methods`` of ``decomposition.json``: variances, noise at equal compute, and its ratio to Standard's.

    Args:
        results: the first must be ``standard``.
        data_noise: C of Standard.
    """
    return [_row(r, results[0], data_noise) for r in results]


def _row(result: MethodResult, standard: MethodResult, data_noise: Estimate) -> dict:
    measured = result.measured.per_row_variance
    noise = at_equal_compute(measured, result.cost, data_noise)
    predicted = at_equal_compute(result.predicted, result.cost, data_noise) if result.predicted else None
    ratio = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    if result.method != "standard":
        reference = at_equal_compute(standard.measured.per_row_variance, standard.cost, data_noise)
        drawn = result.cost * standard.cost * variance_covariance(result.measured, standard.measured)
        ratio = _ratio(noise, reference, data_noise.stderr**2 + drawn)
    pays = True if ratio["ci_high"] < 1 else False if ratio["ci_low"] > 1 else None
    return {
        "method": result.method,
        "views": result.cost,
        "unbiased": result.unbiased,
        "mean": result.measured.mean.as_dict(),
        "predicted_variance": result.predicted.as_dict() if result.predicted else None,
        "measured_variance": measured.as_dict(),
        "variance_at_equal_compute": noise.as_dict(),
        "predicted_at_equal_compute": predicted.as_dict() if predicted else None,
        "relative_to_standard": ratio,
        "pays": pays,
    }


def _ratio(noise: Estimate, standard: Estimate, covariance: float) -> dict:
    """Ratio with a 95 % interval by the delta method.

    Args:
        covariance: of the two noises, in nats⁴: both hold the same estimate of C, and their draws are shared.
    """
    value = noise.value / standard.value
    variance = noise.stderr**2 + value**2 * standard.stderr**2 - 2 * value * covariance
    half = _Z * max(variance, 0.0) ** 0.5 / abs(standard.value)
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def mirror_condition(
    views: Profile, cost: float, nested: NestedLosses, found: Decomposition, measured: dict | None = None
) -> dict:
    """MIRROR against as many more rows of one view at equal compute, by what decides it at uniform t.

    At c forwards a row it leaves A' of A, and ``c (A' + B + C) - C < A + B`` where ``A - c A' > (c - 1) (B + C)``: for
    two views of every row, c = 2 and A' = A (1 + rho) / 2, that is ``|rho| A > B + C``.

    Args:
        views: the probe of MIRROR's two views. cost: forwards that a row pays on average at uniform t.
        nested: the nested design's losses. found: their decomposition.
        measured: its entry among the compared methods, where it is one of them. With a second view for some t only
            the sentence follows the ratio that is printed there.
    """
    gain = _mean_over_rows((views.row_view_noise() - cost * views.row_noise()) @ views.width)
    rho = _mean_over_rows(-views.row_view_covariance().nan_to_num() @ views.width)
    rest = jackknife(
        lambda keep: float(sum(components(nested.losses[keep], nested.width)[1:])), len(nested.losses), UNIT
    )
    difference = gain.value - (cost - 1) * rest.value
    half = _Z * (gain.stderr**2 + ((cost - 1) * rest.stderr) ** 2) ** 0.5
    pays = True if difference > half else False if difference < -half else None
    said = _condition(cost, gain, rest)
    if cost != 2 and measured:
        pays, ratio = measured["pays"], measured["relative_to_standard"]
        said = (
            f"MIRROR with a second view for some t only costs {cost:.3g} forwards a row; its noise at equal compute is "
            f"{ratio['value']:.2g} ({ratio['ci_low']:.2g} to {ratio['ci_high']:.2g}) of Standard's"
        )
    verdict = {True: "so it pays", False: "so it does not", None: "too close to tell"}[pays]
    return {
        "rho": rho.value / -found.mask_pattern.value,
        "rho_A": rho.as_dict(),
        "B_plus_C": rest.as_dict(),
        "cost": cost,
        "pays": pays,
        "sentence": f"{said}, {verdict}.",
    }


def _condition(cost: float, gain: Estimate, rest: Estimate) -> str:
    """The condition with its two sides."""
    if cost == 2:
        return (
            f"At uniform t, MIRROR beats twice the rows at equal compute only if |rho| A > B + C: here |rho| A = "
            f"{gain.value:.3g} ± {gain.stderr:.2g} and B + C = {rest.value:.3g} ± {rest.stderr:.2g} nats²"
        )
    more = cost - 1
    return (
        f"At uniform t, MIRROR with a second view for some t only, {cost:.3g} forwards a row, beats {cost:.3g} times "
        f"the rows only if A - {cost:.3g} A' > {more:.3g} (B + C), A' the mask-pattern noise that it leaves: here "
        f"{gain.value:.3g} ± {gain.stderr:.2g} and {more * rest.value:.3g} ± {more * rest.stderr:.2g} nats²"
    )


def _mean_over_rows(each: Tensor) -> Estimate:
    return Estimate(value=float(each.mean()), stderr=float(each.std()) / len(each) ** 0.5, n=len(each), unit=UNIT)
