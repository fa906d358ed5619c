"""Methods side by side, at equal compute."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.jackknife import jackknife
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


def mirror_condition(covariance: Tensor, cell_width: Tensor, nested: NestedLosses, found: Decomposition) -> dict:
    """MIRROR against twice the rows at equal compute: it wins only if |rho| A > B + C.

    Args:
        covariance: covariance of the two views within (x0, t), shape (rows, cells), and the cells' widths.
        nested: the nested design's losses. found: their decomposition.
    """
    each = covariance.nan_to_num() @ cell_width
    gain = Estimate(value=-float(each.mean()), stderr=float(each.std()) / len(each) ** 0.5, n=len(each), unit=UNIT)
    rest = jackknife(
        lambda keep: float(sum(components(nested.losses[keep], nested.width)[1:])), len(nested.losses), UNIT
    )
    half = _Z * (gain.stderr**2 + rest.stderr**2) ** 0.5
    difference = gain.value - rest.value
    pays = True if difference > half else False if difference < -half else None
    verdict = {True: "so it pays", False: "so it does not", None: "too close to tell"}[pays]
    return {
        "rho": gain.value / -found.mask_pattern.value,
        "rho_A": gain.as_dict(),
        "B_plus_C": rest.as_dict(),
        "pays": pays,
        "sentence": (
            f"At uniform t, MIRROR beats twice the rows at equal compute only if |rho| A > B + C: here |rho| A = "
            f"{gain.value:.3g} ± {gain.stderr:.2g} and B + C = {rest.value:.3g} ± {rest.stderr:.2g} nats², {verdict}."
        ),
    }
