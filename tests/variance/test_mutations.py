"""The tests can fail: each guard passes on the library and raises on a slightly wrong copy of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.ppots.profile import Profile, probe, rate_edges
from stabledllm.ppots.shared_noise import shared_forms
from stabledllm.variance import components as nested
from stabledllm.variance import predicted
from stabledllm.variance.drawn import Measured, measure
from tests.checks.statistics import Z, assert_mean
from tests.fakes.laws import linear_law
from tests.fakes.meters import FakeMeter, TableMeter
from tests.fakes.profiles import exact_profile, nested_of
from tests.variance.test_predicted import removed_in_parts

pytestmark = pytest.mark.long

LAW = linear_law()
SHARP = linear_law(s0=0.6, s1=-0.3)
CALM = linear_law(tau2=0.01, h1=0.5, s0=0.2, s1=0.0)
STANDARD = Method.parse("standard")


class Density(Tabulated):
    """A density whose weight is too large by ``error``."""

    def __init__(self, error: float = 0.0):
        super().__init__([0.5, 1.5])
        self.error = error

    def weight(self, t):
        return super().weight(t) * (1 + self.error)


class Clamped(TableMeter):
    """Losses clamped at 10, as one of the public codes does."""

    def view_losses(self, *args, **kwargs):
        losses, used = super().view_losses(*args, **kwargs)
        return losses.clamp(max=10.0), used


def guard_components(part: int, factor: float = 1.0) -> None:
    """A, B or C of a known law (part 0, 1, 2), times ``factor`` in the mutant."""
    drawn = nested.nested_losses(FakeMeter(SHARP), STANDARD, rows=8 * 2500, rates=5, masks=2, seed=0, design="iid")
    found = torch.stack([nested.components(nested_of(losses))[part] for losses in drawn.losses.split(8)])
    assert_mean(found * factor, (SHARP.pattern, SHARP.rate, SHARP.data)[part])


def guard_predicted(density: Tabulated, factor: float = 1.0) -> None:
    """The predicted variance of a profile without sampling error is exact."""
    exact = LAW.integral(LAW.second_moment, 0, 0.5) / 0.5 + LAW.integral(LAW.second_moment, 0.5, 1) / 1.5 - LAW.mean**2
    found = predicted.per_row_variance(exact_profile(LAW).moments, IID(), [(density, torch.arange(100))], 8)
    assert found.value * factor == pytest.approx(exact, rel=0.005)


def guard_strata(error: float = 0.0) -> None:
    """What strata remove, known exactly for a linear g, with a relative error in the mutant."""
    arguments = [(Density(), torch.arange(100))]
    iid, left = (
        predicted.per_row_variance(exact_profile(LAW).moments, s, arguments, 8).value for s in (IID(), Stratified(2))
    )
    # The variance between the means of g w over each stratum of u.
    t = Density().icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    means = (LAW.h(t) * Density().weight(t)).view(2, -1).mean(1)
    assert (iid - left) * (1 + error) == pytest.approx(float(means.var(correction=0)), rel=0.03)


def guard_measured_variance(factor: float = 1.0) -> None:
    found = measure(FakeMeter(LAW), STANDARD, Uniform(), rows=100, steps=300, seed=1).per_row_variance
    assert abs(found.value * factor - LAW.total) <= Z * found.stderr


def guard_measured_mean(density: Tabulated) -> None:
    """A calm law under strata, so that the mean's error is far below 2 %."""
    found = measure(FakeMeter(CALM), Method.parse("strats"), density, rows=36, steps=400, seed=1)
    assert abs(found.mean.value - CALM.mean) <= Z * found.mean.stderr


def guard_enumerated_mean_and_variance(meter: TableMeter) -> None:
    """Losses of real masks near t = 0 reach hundreds of nats: mean and total variance by enumeration."""
    exact = meter.exact(rate_edges(6))
    drawn = nested.nested_losses(meter, STANDARD, rows=4000, rates=6, masks=4, seed=0)
    parts = [(losses, nested.components(nested_of(losses, drawn.width))) for losses in drawn.losses.split(4)]
    assert_mean(torch.stack([losses.mean(-1).mean(0) @ drawn.width for losses, _ in parts]), exact["mean"], "mean")
    assert_mean(torch.stack([sum(abc) for _, abc in parts]), exact["A"] + exact["B"] + exact["C"], "total")


def guard_enumerated_profile(meter: TableMeter) -> None:
    """The second moment near t = 0 by enumeration, cell by cell at the midpoints."""
    profile: Profile = probe(meter, STANDARD, rows=4000, rates=6, masks=4, seed=0)
    exact = meter.moments(profile.t)[1].mean(0)
    for cell in range(3, 7):
        assert_mean(profile.moments.moment[:, cell], float(exact[cell]), f"t = {float(profile.t[cell]):.3g}")


def guard_removed_in_small_probes() -> None:
    law, source = linear_law(tau2=0.5, h1=0.3), LowDiscrepancy()
    profile = probe(FakeMeter(law), STANDARD, rows=8 * 160, rates=6, masks=2, seed=4)
    assert_mean(removed_in_parts(profile, 8, source, Uniform(), 10), law.h_variance * (1 - 1 / 10))


@pytest.mark.statistical
@pytest.mark.parametrize("part", [0, 1, 2], ids=["A", "B", "C"])
def test_ten_percent_in_a_component_is_found(part):
    guard_components(part)
    for factor in (0.9, 1.1):
        with pytest.raises(AssertionError):
            guard_components(part, factor)


def test_ten_percent_in_a_predicted_variance_is_found():
    guard_predicted(Density())
    for factor in (0.9, 1.1):
        with pytest.raises(AssertionError):
            guard_predicted(Density(), factor)


def test_ten_percent_in_what_strata_remove_is_found():
    guard_strata()
    for error in (-0.1, 0.1):
        with pytest.raises(AssertionError):
            guard_strata(error)


@pytest.mark.statistical
def test_ten_percent_in_a_measured_variance_is_found():
    guard_measured_variance()
    for factor in (0.9, 1.1):
        with pytest.raises(AssertionError):
            guard_measured_variance(factor)


@pytest.mark.statistical
def test_two_percent_in_a_weight_is_found():
    for guard in (guard_measured_mean, guard_predicted):
        guard(Density())
        for error in (-0.02, 0.02):
            with pytest.raises(AssertionError):
                guard(Density(error))


@pytest.mark.statistical
@pytest.mark.parametrize("guard", [guard_enumerated_mean_and_variance, guard_enumerated_profile])
def test_losses_clamped_at_10_are_found(guard):
    guard(TableMeter(3))
    with pytest.raises(AssertionError):
        guard(Clamped(3))


@pytest.mark.statistical
def test_plugging_in_the_probes_mean_is_found(monkeypatch):
    """It takes the mean's own noise for noise that the source removes."""

    def plugged_in(losses, pieces, sampler, source, n, weighs_by):
        mean = losses.mean
        form = shared_forms(losses.t, sampler, source, n)[1]
        return lambda keep: float(mean[keep].mean(0) @ form @ mean[keep].mean(0))

    guard_removed_in_small_probes()
    monkeypatch.setattr(predicted, "_removed_noise", plugged_in)
    with pytest.raises(AssertionError):
        guard_removed_in_small_probes()


def test_a_library_that_forgets_a_correction_is_found(monkeypatch):
    """B without ``- A / c``, and the variance of dependent rows taken as if they were independent."""
    right = nested.components

    def uncorrected(drawn):
        a, b, c = right(drawn)
        return a, b + a / drawn.losses.shape[2], c

    monkeypatch.setattr(nested, "components", uncorrected)
    with pytest.raises(AssertionError):
        guard_components(1)
    monkeypatch.undo()
    guard_components(1)
    found = measure(FakeMeter(CALM), Method.parse("lowdisc"), Density(), rows=16, steps=400, seed=2)
    wrong: Measured = replace(found, independent_rows=True)
    assert found.per_row_variance.value + Z * found.per_row_variance.stderr < wrong.per_row_variance.value
