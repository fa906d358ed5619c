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
    _assert_within(mean, expected, error, what)


def assert_variance(values, expected: float, what: str = "variance") -> None:
    """The sample variance lies within Z standard errors of the expected one; its error is from the fourth moment."""
    n = len(values)
    centred = (values - values.mean()) ** 2
    variance, error = float(centred.sum()) / (n - 1), float(centred.std()) / n**0.5
    _assert_within(variance, expected, error, what)


def assert_agree(one, other, what: str = "", z: float = Z) -> None:
    """Two independent estimates agree within their joint error."""
    error = (one.stderr**2 + other.stderr**2) ** 0.5
    assert abs(one.value - other.value) <= z * error, f"{what}: {one} against {other}"


def _assert_within(found: float, expected: float, error: float, what: str) -> None:
    away = (found - expected) / max(error, 1e-300)
    assert abs(found - expected) <= Z * error + 1e-12, f"{what}: {found:.6g} against {expected:.6g}, {away:.1f} SE"
