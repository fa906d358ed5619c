"""One false-alarm rate for every random test of the suite (Pyro's habit): a tolerance is a decision."""

from __future__ import annotations

from scipy import stats

TEST_FAILURE_RATE = 2e-5
"""Chance that one correct comparison fails. Seeds are fixed, so a test that passes keeps passing."""

Z = float(stats.norm.isf(TEST_FAILURE_RATE / 2))
"""Two-sided normal quantile of that rate, about 4.26 standard errors."""


def assert_mean(values, expected: float, what: str = "mean") -> None:
    """The sample mean lies within Z standard errors of the expected value (float64 array or tensor)."""
    n = len(values)
    mean, sd = float(values.mean()), float(values.std())
    error = sd / n**0.5
    assert abs(mean - expected) <= Z * error + 1e-12, f"{what}: {mean:.6g} against {expected:.6g}, {(mean - expected) / max(error, 1e-300):.1f} SE"


def assert_variance(values, expected: float, what: str = "variance") -> None:
    """The sample variance lies within Z standard errors of the expected one; its error is from the fourth moment."""
    n = len(values)
    centred = (values - values.mean()) ** 2
    variance, error = float(centred.sum()) / (n - 1), float(centred.std()) / n**0.5
    assert abs(variance - expected) <= Z * error + 1e-12, f"{what}: {variance:.6g} against {expected:.6g}, {(variance - expected) / max(error, 1e-300):.1f} SE"
