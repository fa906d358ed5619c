"""A, B and C: unbiased in both designs, with honest errors."""

from __future__ import annotations

import math

import pytest
import torch

from stabledllm.noise.methods import Method
from stabledllm.ppots.profile import rate_edges
from stabledllm.variance.components import components, decompose, nested_losses
from tests.checks.statistics import assert_mean
from tests.fakes.laws import Law, linear_law
from tests.fakes.meters import FakeMeter, TableMeter
from tests.fakes.profiles import nested_of

STANDARD = Method.parse("standard")


def replicates(meter, rows: int, seed: int = 0, count: int = 4000, **design) -> torch.Tensor:
    """A, B, C of many nested designs of ``rows`` rows, shape (replicates, 3): disjoint parts of one large design."""
    nested = nested_losses(meter, STANDARD, rows=rows * count, seed=seed, **design)
    parts = [p for p in nested.losses.split(rows) if len(p) == rows]
    return torch.stack([torch.stack(components(nested_of(p, nested.width))) for p in parts])


def assert_components(found: torch.Tensor, exact: dict[str, float]) -> None:
    for k, name in enumerate("ABC"):
        assert_mean(found[:, k], exact[name], name)
    assert_mean(found.sum(1), exact["A"] + exact["B"] + exact["C"], "total")


def law_parts(law: Law, rates: int | None = None) -> dict[str, float]:
    moved = law.within_cells(rate_edges(rates).diff()) if rates else 0.0
    return {"A": law.pattern, "B": law.rate - moved, "C": law.data + moved}


@pytest.mark.statistical
@pytest.mark.parametrize(("rows", "rates", "masks"), [(2, 2, 2), (5, 3, 2), (3, 4, 3)])
def test_iid_design_is_unbiased(rows, rates, masks):
    law = linear_law()
    found = replicates(FakeMeter(law), rows=rows, rates=rates, masks=masks, design="iid")
    assert_components(found, law_parts(law))


@pytest.mark.statistical
@pytest.mark.parametrize(("rows", "rates", "masks"), [(2, 2, 2), (4, 6, 2)])
def test_cells_design_is_unbiased_up_to_the_variance_within_cells(rows, rates, masks):
    law = linear_law()
    found = replicates(FakeMeter(law), rows=rows, rates=rates, masks=masks, design="cells")
    assert_components(found, law_parts(law, rates))


def test_small_negative_estimates_are_reported_as_they_are():
    """No data noise and no rate noise: unbiased estimates of 0 are often negative and average to 0."""
    law = linear_law(tau2=0.0, h1=0.0)
    for design in ("iid", "cells"):
        found = replicates(FakeMeter(law), rows=3, rates=3, masks=2, design=design)
        assert_mean(found[:, 1], 0.0, "B")
        assert_mean(found[:, 2], 0.0, "C")
        assert 0.2 < float((found[:, 1] < 0).double().mean()) < 0.8
        assert 0.2 < float((found[:, 2] < 0).double().mean()) < 0.8


def test_components_by_hand():
    losses = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[0.0, 2.0], [2.0, 6.0]]], dtype=torch.float64)
    # Cell means 2, 5; 1, 4. Cell variances 2, 0; 2, 8.
    a, b, c = components(nested_of(losses))
    assert a == pytest.approx(3.0)
    assert b == pytest.approx(4.5 - 3.0 / 2)
    assert c == pytest.approx(0.5 - 4.5 / 2)
    a, b, c = components(nested_of(losses, torch.tensor([0.25, 0.75], dtype=torch.float64)))
    error = [2 * 0.0625 / 2, (2 * 0.0625 + 8 * 0.5625) / 2]
    second = [0.25 * (4 - 1) + 0.75 * 25, 0.25 * (1 - 1) + 0.75 * (16 - 4)]
    of_row = [4.25, 3.25]
    assert a == pytest.approx((0.5 + 6.5) / 2)
    assert b == pytest.approx(sum(s - m**2 + e for s, m, e in zip(second, of_row, error, strict=True)) / 2)
    assert c == pytest.approx(0.5 - sum(error) / 2)


@pytest.mark.statistical
@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_bernoulli_masks_against_enumeration(tokens):
    """The true 1 / p_mask tail at eps = 1e-3, masks enumerated, t by quadrature."""
    meter = TableMeter(tokens)
    exact = meter.exact(rate_edges(6))
    exact |= {"B": exact["B"] - exact["within_cells"], "C": exact["C"] + exact["within_cells"]}
    assert_components(replicates(meter, rows=6, rates=6, masks=2), exact)


@pytest.mark.statistical
def test_bernoulli_masks_iid_design_against_enumeration():
    meter = TableMeter(3)
    exact = meter.exact(rate_edges(6))
    assert_components(replicates(meter, rows=8, rates=8, masks=2, design="iid"), exact)


@pytest.mark.statistical
@pytest.mark.parametrize("design", ["iid", "cells"])
def test_jackknife_error_is_near_the_true_one(design):
    nested = nested_losses(FakeMeter(linear_law()), STANDARD, rows=12 * 250, rates=4, masks=2, seed=0, design=design)
    found = [decompose(nested_of(losses, nested.width)) for losses in nested.losses.split(12)]
    for name in ("mask_pattern", "mask_rate", "data", "total", "mean"):
        values = torch.tensor([getattr(d, name).value for d in found])
        claimed = torch.tensor([getattr(d, name).stderr for d in found]).square().mean() ** 0.5
        assert 0.8 < float(claimed / values.std()) < 1.25, name


def test_total_is_the_sum_and_mean_is_the_objective():
    law = linear_law()
    for design in ("iid", "cells"):
        nested = nested_losses(FakeMeter(law), STANDARD, rows=200, rates=10, masks=4, seed=3, design=design)
        d = decompose(nested)
        assert d.total.value == pytest.approx(d.mask_pattern.value + d.mask_rate.value + d.data.value)
        assert abs(d.mean.value - law.mean) < 4.26 * d.mean.stderr
        assert abs(d.total.value - law.total) < 4.26 * d.total.stderr
        assert d.total.stderr < 0.2 * law.total
        assert d.total.unit == "nats²"
        assert d.mean.unit == "nats/token"
        assert d.as_dict()["data"]["value"] == d.data.value


def test_rows_are_distinct_and_draws_reproducible():
    meter = FakeMeter(linear_law(), 50)
    one, again, other = (nested_losses(meter, STANDARD, rows=80, rates=4, masks=2, seed=s) for s in (1, 1, 2))
    assert one.rows.sort().values.tolist() == list(range(50))
    assert torch.equal(one.losses, again.losses)
    assert not torch.equal(one.losses, other.losses)
    assert float(one.width.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_too_few_rows_have_no_error(rows):
    nested = nested_losses(FakeMeter(linear_law()), STANDARD, rows=rows, rates=4, masks=2, seed=0)
    d = decompose(nested)
    assert math.isfinite(d.total.value)
    assert math.isnan(d.total.stderr) == (rows < 4)
    assert (d.as_dict()["total"]["stderr"] is None) == (rows < 4)
