"""The split of A of the gradient into count, targets and context: against all masks, listed one by one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stabledllm.gradient.example import example_meter
from stabledllm.gradient.mask_split import ends_of_share, split_masks
from stabledllm.gradient.nested_masks import MASKS_PER_ROW, NestedMasks, nested_masks
from stabledllm.gradient.profile import gradient_profile
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.lab.measure.gradient_notes import note_of_split
from stabledllm.noise.methods import Method
from stabledllm.stats.estimate import Estimate, student
from tests.checks.mask_split import (
    data_over_standard,
    exact_parts,
    least_of_each_class,
    masked_gradients,
    mixed_row,
    of_count,
)
from tests.checks.moments import assert_covers
from tests.checks.split_coverage import KINDS, coverage, of_student, splits_and_truths
from tests.checks.statistics import Z, assert_mean
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, ToyRow, decomposition, toy_row

COUNTED = Method.parse("fixedcount")
PARTS = ("count", "targets", "context", "rate")


MEAN_SIZE = np.mean([row.size for row in KINDS])


@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_the_parts_add_up_to_the_enumerated_a(eps):
    found = [exact_parts(row, eps) for row in KINDS]
    parts = {name: np.mean([each[name] for each in found]) for name in PARTS}
    exact = decomposition(Setting(eps=eps), KINDS)
    assert sum(parts[name] for name in PARTS[:3]) == pytest.approx(exact["A"][1])
    assert parts["rate"] == pytest.approx(exact["B"][1])
    assert all(value > 0 for value in parts.values())


def partitions(tokens: tuple[int, ...], k: int):
    """All partitions of the tokens into sets of k, each as indices of masks."""
    if not tokens:
        yield ()
        return
    for others in itertools.combinations(tokens[1:], k - 1):
        rest = tuple(i for i in tokens if i not in (tokens[0], *others))
        for further in partitions(rest, k):
            yield (sum(1 << i for i in (tokens[0], *others)), *further)


@pytest.mark.parametrize(("size", "k"), [(4, 1), (4, 2), (6, 1), (6, 2), (6, 3)])
def test_a_partition_removes_the_targets_and_leaves_the_context(size, k):
    """Its variance has no part of first order; the pairs' part is raised by (k - 1) / (P - k - 1), triples' cancel."""
    row, views = mixed_row(size, 1), size // k
    means = np.array([row.masked_sums[list(masks), 1:].mean(0) for masks in partitions(tuple(range(size)), k)])
    by_order = variance_by_order(row, k)
    expected = sum(part * (1 + (views - 1) * overlap_0(size, k, d)) for d, part in enumerate(by_order, 1)) / views
    assert means.var(0).sum() == pytest.approx(expected)
    assert 1 + (views - 1) * overlap_0(size, k, 1) == pytest.approx(0.0)
    if k > 1:
        assert 1 + (views - 1) * overlap_0(size, k, 2) == pytest.approx(1 + (k - 1) / (size - k - 1))
    member, value = masked_gradients(row, k)
    given = member.T @ value / member.sum(0)[:, None] - value.mean(0)
    assert by_order[0] == pytest.approx(k * (size - 1) / (size - k) * (given**2).sum(1).mean())
    assert by_order[0] == pytest.approx(of_count(row, k)[2])
    assert sum(by_order) == pytest.approx(of_count(row, k)[1])


def variance_by_order(row: ToyRow, k: int) -> list[float]:
    """What sums over sets of d = 1, 2, ... tokens explain of Var G_M beyond those of smaller sets, by regression."""
    member, value = masked_gradients(row, k)
    before, parts = 0.0, []
    for d in range(1, min(k, row.size - k) + 1):
        sets = list(itertools.combinations(range(row.size), d))
        together = np.stack([member[:, list(each)].prod(1) for each in sets], 1)
        fitted = together @ np.linalg.lstsq(together, value, rcond=None)[0]
        parts.append(fitted.var(0).sum() - before)
        before += parts[-1]
    return parts


def overlap_0(size: int, k: int, d: int) -> float:
    """The correlation of the parts of order d of two disjoint masks."""
    return (-1) ** d * math.comb(size - k - d, k - d) / math.comb(size - k, k)


def measured(meter, rows: int, seed: int = 0, method: Method = COUNTED) -> NestedMasks:
    profile = gradient_profile(meter, method, rows=rows, rates=4, masks=2, seed=seed)
    return nested_masks(meter, profile, seed)


def groups(nested: NestedMasks, size: int) -> list[NestedMasks]:
    """The measurement of so many rows at a time; C and the means over rows stay those of the first."""
    names, first = (*PARTS, "exact", "exact_context", "in_partition"), nested.profile.first(size)
    return [
        replace(nested, **{name: getattr(nested, name)[:, rows] for name in names}, profile=first)
        for rows in torch.arange(len(nested.profile.rows)).split(size)
    ]


def toy(eps: float = 0.1, power: float = 0.0, **further) -> ToyGradients:
    return ToyGradients(KINDS, eps=eps, power=power, **further)


@pytest.fixture(scope="module")
def many() -> NestedMasks:
    return measured(toy(n_rows=960), 960)


@pytest.mark.statistical
def test_each_row_is_estimated_without_bias(many):
    for kind, row in enumerate(KINDS):
        exact, here = exact_parts(row, 0.1), many.profile.rows % len(KINDS) == kind
        for name in PARTS:
            assert_mean(getattr(many, name)[0, here], exact[name], f"{name} of {row.size} tokens")
        error = float(many.context[0, here].std()) / int(here.sum()) ** 0.5
        assert error < 0.1 * max(exact["context"], 0.1 * exact["targets"]), "too vague to fail"


@pytest.mark.statistical
def test_under_another_power_and_the_token_mean():
    meter = toy(power=1.0, normalization="token", n_rows=240)
    counts = Method.parse("fixedcount", None, meter.objective)
    nested = measured(meter, 240, 1, counts)
    for kind, row in enumerate(KINDS):
        exact, share = exact_parts(row, 0.1, 1.0), row.size / MEAN_SIZE
        for name in PARTS:
            each = getattr(nested, name)[0, nested.profile.rows % len(KINDS) == kind]
            assert_mean(each, exact[name] * share**2, f"{name} of {row.size} tokens")


@pytest.mark.statistical
def test_intervals_hold_the_truth(many):
    found = [exact_parts(row, 0.1) for row in KINDS]
    truth = {name: np.mean([each[name] for each in found]) for name in PARTS[:3]}
    truth |= {f"share_of_{name}": value / sum(truth.values()) for name, value in truth.items()}
    splits = [split_masks(group) for group in groups(many, 12)]

    def held(name: str, ends=Estimate.interval) -> int:
        found = [ends(getattr(split, name)) for split in splits]
        return sum(low <= truth[name] <= high for low, high in found)

    for name in truth:
        assert_covers(held(name), len(splits), name)
        if not name.startswith("share"):
            with pytest.raises(AssertionError):
                assert_covers(held(name, half_of_it), len(splits), f"half of the interval of {name}")


def half_of_it(found: Estimate) -> tuple[float, float]:
    low, high = found.interval()
    return (found.value + low) / 2, (found.value + high) / 2


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("seed", range(24))
def test_the_interval_of_a_share_is_fiellers(blocks, seed):
    """It holds the shares at which the mean difference is less than a Student quantile of its errors from 0."""
    draw = torch.Generator().manual_seed(seed)
    rows = 3 + seed % 7
    part = torch.randn(blocks, rows, generator=draw).double() * (0.1 + seed % 4) + seed % 5 - 1
    whole = part + torch.randn(blocks, rows, generator=draw).double() * (0.1 + seed % 3) + seed % 6

    def may_be_nothing(difference: Tensor) -> Tensor:
        error = difference.mean(1).var(1) / rows + (difference.mean(2).var(1) / blocks if blocks > 1 else 0)
        return difference.mean((1, 2)).abs() <= student(rows - 1) * error.sqrt()

    shares = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    held = shares[may_be_nothing(part - shares[:, None, None] * whole)]
    low, high = ends_of_share(part, whole)
    estimate = min(max(float(part.mean() / whole.mean()), 0.0), 1.0)
    assert low <= estimate <= high
    if bool(may_be_nothing(whole[None])):
        assert (low, high) == (0, 1)
    elif len(held):
        assert (low, high) == (pytest.approx(float(held.min()), abs=1e-4), pytest.approx(float(held.max()), abs=1e-4))
    else:
        assert {low, high} & {0.0, 1.0}, "it misses what is possible, and holds half its width there"
        assert low < high


def test_the_note_has_the_intervals_and_claims_none_that_is_not_known(many):
    split = split_masks(many)
    low, high = split.share_of_count.interval()
    assert f"{100 * low:.0f} to {100 * high:.0f}) how many are masked" in note_of_split(split)
    low, high = split.least_one_view.interval()
    assert f"below {split.least_one_view.value:.3g} ({low:.2g} to {high:.2g}) of Standard's" in note_of_split(split)
    unknown = replace(split.least_one_view, stderr=math.nan, ends=None)
    assert f"below {unknown.value:.3g} of Standard's" in note_of_split(replace(split, least_one_view=unknown))


def test_a_share_of_what_may_be_nothing_may_be_anything():
    part, whole = torch.tensor([[1.0, -2.0, 2.0]]), torch.tensor([[30.0, -40.0, 20.0]])
    assert ends_of_share(part, whole) == (0, 1)
    assert all(map(math.isnan, ends_of_share(part, whole / 0)))
    assert ends_of_share(part[:, :1], whole[:, :1]) == (pytest.approx(math.nan, nan_ok=True),) * 2


@pytest.mark.statistical
def test_the_least_of_each_class_equals_enumeration(many):
    edges = many.profile.edges.numpy()
    exact, data = least_of_each_class(KINDS, 0.1, edges), data_over_standard(KINDS, 0.1, edges)
    split = split_masks(many)
    for name, least in exact.items():
        found = getattr(split, name)
        assert abs(found.value - least) < Z * found.stderr, name
        before_data = found.value + data * (name == "least_partition")
        assert found.stderr < 0.1 * before_data, f"{name}: too vague to fail"
    assert exact["least_balanced"] < exact["least_one_view"] < 1


@pytest.mark.long
@pytest.mark.statistical
def test_intervals_from_few_random_rows_hold_the_truth():
    found = splits_and_truths(120, 12)
    own, plain = coverage(found), coverage(found, of_student)
    for name in own:
        assert_covers(own[name]["held"], len(found), name)
        assert own[name]["none"] == 0
    missed = [sum(len(found) - one[f"share_of_{name}"]["held"] for name in PARTS[:3]) for one in (own, plain)]
    assert 2 * missed[0] < missed[1], "Student's interval of a ratio is too short"
    assert own["least_balanced"]["held"] > plain["least_balanced"]["held"]


def test_masks_are_those_of_the_gradients():
    meter = toy(n_rows=30)
    nested = measured(meter, 5, 3)
    assert nested.forwards == meter.forwards - nested.profile.forwards == 5 * MASKS_PER_ROW
    assert torch.equal(nested.context, measured(toy(n_rows=30), 5, 3).context)
    with pytest.raises(ValueError, match="expected a profile of fixedcount, found standard"):
        measured(meter, 4, method=Method())


def test_batches_and_projections_change_nothing_but_the_last_bits():
    whole, small = measured(example_meter(), 4), measured(example_meter(tokens_per_batch=8), 4)
    projected = measured(example_meter(ProjectedGradients), 4)
    for name in PARTS:
        value, least = getattr(whole, name), 1e-5 * float(whole.targets.max())
        assert torch.allclose(value, getattr(small, name), atol=least)
        assert torch.allclose(value[0], getattr(projected, name).mean(0), rtol=1e-3, atol=10 * least)


def test_a_model_without_context_has_none():
    """The example's tokens see themselves alone: targets are all of a mask's noise, given its count."""
    split = split_masks(measured(example_meter(), 4, 1))
    assert abs(split.context.value) < 5 * split.context.stderr
    assert split.targets.value > 10 * abs(split.context.value)


def test_a_response_of_one_token_has_neither():
    nested = measured(ToyGradients([toy_row(1, 0)], n_rows=6), 4)
    assert float(nested.targets.abs().max()) < 1e-12
    assert float(nested.context.abs().max()) < 1e-12
    assert (nested.count > 0).all(), "whether its token is masked at all"
