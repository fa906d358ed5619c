"""A, B, C of the gradient in blocks, the split of B and drawn steps, against all masks of every block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.block_components import UnitNoise, decompose_in_blocks, mean_of, split_of_gradient, unit_noise
from stabledllm.gradient.block_noise import StepNoiseInBlocks
from stabledllm.gradient.blocks import (
    BlockRowGradients,
    BlockSteps,
    ProjectedBlockGradients,
    ProjectedUnitGradients,
    UnitRowGradients,
)
from stabledllm.gradient.nested_rows import nested_rows
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.variance.some_masked import SomeMasked
from tests.checks.statistics import Z, assert_mean
from tests.fakes.block_gradients import PARAMETERS, ExactGradient
from tests.fakes.tables import tiny_in_blocks
from tests.oracle import step_variance, toy_row
from tests.statistical.cases import FITTED, case, in_window
from tests.variance.test_blocks import EPS, ROWS, STANDARD, TwoAlike

pytestmark = pytest.mark.statistical
COPIES = 40


def method(text: str) -> Method:
    return Method.parse(text, objective=Objective(eps=EPS))


def meter_of(kind, model=None, rows=ROWS, copies=COPIES, normalization="row", window=None, **kwargs):
    loaded = MeteredModel(model or tiny_in_blocks(), mask_id=0, pad_id=0)
    kwargs = {"parameters": None if model else PARAMETERS, "tokens_per_batch": 2**13} | kwargs
    objective = Objective(eps=EPS, normalization=normalization, window=window)
    return kind(loaded, rows * copies, objective, block_size=2, **kwargs)


def units_of(meter, rows: int, seed: int) -> UnitNoise:
    chosen = Method.parse("fixedcount", objective=meter.objective)
    return unit_noise(meter, chosen, rows=rows, rates=4, masks=2, seed=seed)


@pytest.fixture(scope="module")
def exact() -> ExactGradient:
    return ExactGradient(tiny_in_blocks(), ROWS, STANDARD)


@pytest.fixture(scope="module")
def measured() -> list[tuple[UnitNoise, object]]:
    """Measurements of 16 single blocks and 8 whole rows each."""
    units, rows = meter_of(UnitRowGradients), meter_of(BlockRowGradients)
    given = {"rows": 8, "rates": 4, "one_t": True}
    return [(units_of(units, 16, s), nested_rows(rows, method("standard"), seed=s, **given)) for s in range(16)]


def test_every_part_is_unbiased_and_its_error_is_right(measured, exact):
    found = [decompose_in_blocks(*pair) for pair in measured]
    splits = [split_of_gradient(*pair) for pair in measured]
    a, b, c = exact.pattern, exact.own, exact.data
    truths = {"mask_pattern": a, "mask_rate": b, "data": c, "mask": a + b, "total": a + b + c}
    truths["mean_square"] = exact.mean_square
    of_split = {"of_blocks": exact.single, "between_rows": exact.shared, "own_t": b}
    of_split["between_blocks"] = exact.single - exact.shared
    for each, wanted in ((found, truths), (splits, of_split)):
        for name, truth in wanted.items():
            estimates = [getattr(one, name) for one in each]
            values = np.array([e.value for e in estimates])
            assert_mean(values, truth, name)
            assert 0.4 < np.mean([e.stderr for e in estimates]) / values.std() < 3, name
            assert values.std() < a + b, f"{name}: too vague to fail"
    assert abs(exact.shared / exact.own - 1) > 0.15, "an exchange of the two would be seen"
    cost = (a + exact.shared) / (a + b)
    ratios = [one.cost_of_one_t for one in splits]
    held = [not one.is_known or one.ci_low <= cost <= one.ci_high for one in ratios]
    assert sum(held) >= 13, ratios
    assert any(one.is_known for one in ratios)


def test_under_a_mean_over_tokens_a_row_counts_by_its_tokens():
    """SDAR's mean: at the same draws every moment of a row, and of its blocks, is its share squared times as large."""
    sizes = torch.tensor([len(row) - row.prompt_length for row in ROWS]).double()
    share, found = sizes / sizes.mean(), []
    for normalization in ("row", "token"):
        units, whole = (
            meter_of(kind, normalization=normalization, copies=1) for kind in (UnitRowGradients, BlockRowGradients)
        )
        standard = Method.parse("standard", objective=whole.objective)
        found.append((units_of(units, 99, 0), nested_rows(whole, standard, rows=3, rates=3, seed=0, one_t=True)))
    (units, rows), (units_by_token, rows_by_token) = found
    blocks = (meter_of(BlockSteps, copies=1).block_sizes > 0).sum(1)
    row_of = torch.arange(len(ROWS)).repeat_interleave(blocks)
    squared = share[row_of[units.profile.rows]] ** 2
    assert len(squared) == 8
    for part in ("pattern", "rate", "single"):
        torch.testing.assert_close(getattr(units_by_token, part), getattr(units, part) * squared, rtol=1e-4, atol=1e-4)
    hidden = units.hidden(Uniform()) * squared
    torch.testing.assert_close(units_by_token.hidden(Uniform()), hidden, rtol=1e-4, atol=1e-4)
    squared = share[rows.profile.rows] ** 2
    for part in ("square", "at_rates", "of_rows"):
        torch.testing.assert_close(getattr(rows_by_token, part), getattr(rows, part) * squared, rtol=1e-4, atol=1e-4)


def test_in_a_window_every_t_of_a_block_is_the_place_in_it():
    """LLaDA2's window: the law of counts, the chance of hiding nothing and the mask ratios are those of the window."""
    window = (0.3, 0.8)
    truth = ExactGradient(tiny_in_blocks(), ROWS, in_window("standard", *window).setting)
    units, rows = (meter_of(kind, window=window) for kind in (UnitRowGradients, BlockRowGradients))
    standard, found, hidden = Method.parse("standard", objective=rows.objective), [], []
    for s in range(16):
        single = units_of(units, 16, s)
        nested = nested_rows(rows, standard, rows=8, rates=4, seed=s, one_t=True)
        found.append((decompose_in_blocks(single, nested), split_of_gradient(single, nested)))
        hidden.append(mean_of(single.hidden(Uniform())).value)
    for name, value in {"mask_pattern": truth.pattern, "mask_rate": truth.own, "data": truth.data}.items():
        assert_mean(np.array([getattr(parts, name).value for parts, _ in found]), value, name)
    assert_mean(np.array([split.between_rows.value for _, split in found]), truth.shared, "B of one t")
    assert_mean(np.array(hidden), truth.hidden, "what masks that hide a token leave out")


def test_a_t_of_its_own_for_each_block_and_plain_masks(exact):
    """The same parts from whole rows alone, as where blocks see each other's noise."""
    meter, rows = meter_of(BlockRowGradients), 10
    found = [
        nested_rows(meter, method("standard"), rows=rows, rates=3, seed=s, one_t=False, hidden=False) for s in range(24)
    ]
    assert_mean(np.array([float((one.square - one.at_rates).mean()) for one in found]), exact.pattern, "A")
    assert_mean(np.array([float(one.rate_noise.mean()) for one in found]), exact.own, "B")
    assert_mean(np.array([float(one.data_noise(torch.arange(rows))) for one in found]), exact.data, "C")


@pytest.mark.parametrize("text", ["ppots", "mirror", "complement"])
def test_drawn_steps_have_the_variance_of_the_method(text, exact):
    chosen = method(text)
    sampler = chosen.sampler(Tabulated(FITTED))
    given = chosen.views.count == 1 and not chosen.masker.counted
    drawing = replace(chosen, masker=SomeMasked()) if given else chosen
    meter, units = meter_of(BlockSteps), units_of(meter_of(UnitRowGradients), 80, 3)
    hidden = units.hidden(sampler) if given else torch.zeros(1, 80)
    found = [
        StepNoiseInBlocks(meter.measure(drawing, sampler, rows=4, steps=6, seed=s), 1.0, hidden).per_row_variance
        for s in range(20)
    ]
    truth = exact.of_method(case(text, eps=EPS).setting)
    values, missing = np.array([e.value for e in found]), mean_of(hidden)
    error = (values.var(ddof=1) / len(values) + missing.stderr**2) ** 0.5
    assert abs(values.mean() - truth) < Z * error, (values.mean(), truth, error)
    assert not given or missing.value > 3 * error, "without what is hidden the mean would be seen to be wrong"
    held = sum(e.interval()[0] <= truth <= e.interval()[1] for e in found)
    assert held >= 16, f"{held} of 20 intervals hold"


def test_what_masks_that_hide_a_token_leave_out(exact):
    found = mean_of(units_of(meter_of(UnitRowGradients), 120, 0).hidden(Uniform()))
    assert abs(found.value - exact.hidden) < Z * found.stderr
    assert found.stderr < 0.25 * exact.hidden


@pytest.mark.parametrize(("text", "kind"), [("lowdisc", "standard"), ("strats+fixedcount", "fixedcount")])
def test_a_lattice_and_strata_span_the_blocks_of_the_whole_step(text, kind):
    """The model's only parameter multiplies the loss, so that its gradient is the loss."""
    rows, units = 3, 6
    chosen = method(text)
    meter = meter_of(BlockSteps, TwoAlike(), [TokenRow([1, 1, 1, 1, 1], 1)])
    found = [meter.measure(chosen, chosen.sampler(), rows=rows, steps=40, seed=s) for s in range(12)]
    setting, source = case(kind, eps=EPS).setting, text.split("+")[0]
    truth = rows * float(step_variance(setting, toy_row(2), source, units, 3)[0])
    assert_mean(np.array([one.per_row_variance().value for one in found]), truth, text)


def test_one_t_for_all_blocks_of_a_row_is_drawn_as_such():
    meter = meter_of(BlockSteps, one_t=True)
    drawn = torch.arange(6)
    t = meter.rates(method("lowdisc"), Uniform(), Key(0, 0), drawn)
    real = meter.block_sizes[drawn] > 0
    assert all(len(row[here].unique()) == 1 for row, here in zip(t, real, strict=True))
    assert len(t[:, 0].unique()) == 6
    assert not t[~real].any()


@pytest.mark.parametrize(
    ("exact_kind", "projected"),
    [(UnitRowGradients, ProjectedUnitGradients), (BlockRowGradients, ProjectedBlockGradients)],
)
@pytest.mark.parametrize("masker", [None, SomeMasked()], ids=["plain", "hidden"])
def test_exact_and_projected_gradients_are_those_of_autograd(exact_kind, projected, masker):
    """One backward a batch, one a row and the projection: the same gradients, whose losses are those of the meter."""
    chosen = method("standard") if masker is None else replace(method("standard"), masker=masker)
    row, t = torch.tensor([0, 1, 2, 0]), torch.tensor([0.9, 0.4, 0.7, 0.2]).double()
    whole = meter_of(exact_kind, tiny_in_blocks(), copies=1)
    alone = meter_of(exact_kind, tiny_in_blocks(), copies=1, vectorised=False)
    (batch,) = whole.gradients(row, t, chosen, Key(0, 0))
    (one_by_one,) = alone.gradients(row, t, chosen, Key(0, 0))
    order = batch.index
    assert whole.layers, "or the first were taken row by row as well"
    torch.testing.assert_close(batch.gradients, one_by_one.gradients)
    torch.testing.assert_close(batch.losses, whole.losses(row, t, chosen, Key(0, 0))[order])
    sketched = meter_of(projected, tiny_in_blocks(), copies=1)
    (small,) = sketched.gradients(row, t, chosen, Key(0, 0))
    wanted = sketched.sketch.of(batch.gradients.float())
    torch.testing.assert_close(small.gradients, wanted, rtol=1e-3, atol=1e-4)
