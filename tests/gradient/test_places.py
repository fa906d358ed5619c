"""The gradient's noise in windows and under bells, where t is a place: against all masks, listed one by one."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.gradient import counts
from stabledllm.gradient.components import decompose_gradient
from stabledllm.gradient.counts import coefficients_at_unit_weight
from stabledllm.gradient.floor import gradient_floor
from stabledllm.gradient.mask_split import split_masks
from stabledllm.gradient.nested_masks import _MASKS, _PER_STRATUM, _STRATA, _law_of_counts, _RowLaw, nested_masks
from stabledllm.gradient.predicted import profile_method, step_noise, uniform_for
from stabledllm.gradient.profile import GradientProfile, gradient_profile, masks_per_cell
from stabledllm.gradient.row_moments import weight_at
from stabledllm.gradient.staircase import Curves
from stabledllm.noise.bell import count_law
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from tests.checks.gradients import assert_floors, drawn, exact_noise
from tests.checks.mask_split import exact_parts_under, masked_gradients, mixed_row, of_count
from tests.checks.statistics import Z, assert_mean
from tests.fakes.gradients import ToyGradients
from tests.mutation.inject import noticed
from tests.oracle import Setting, count_coefficient, count_edges, objective_by_quadrature, toy_row
from tests.statistical.cases import Case, case, in_window, masked_mean, under_bell

pytestmark = pytest.mark.statistical
KINDS = [toy_row(4, 0), toy_row(3, 1), toy_row(4, 2)]
MIXED = [mixed_row(4, 0), toy_row(3, 1), mixed_row(4, 2)]
"""Of the same sizes; more of their A is of the context."""
SIZE = np.array([row.size for row in KINDS])


def inside(text: str, **given) -> Case:
    return in_window(text, 0.3, 0.8, **given)


def belled(text: str, **given) -> Case:
    return under_bell(text, 2, 2, **given)


STANDARD = {
    "window": inside("standard"),
    "lower half": in_window("standard", 0.0, 0.5),
    "upper part, power": in_window("standard", 0.6, 1.0, power=0.5),
    "llada2": masked_mean(inside("standard", power=1)),
    "bell": belled("standard"),
    "bell in a window": under_bell("standard", 2, 3, window=(0.2, 0.9)),
    "bell without eps": belled("standard", eps=0.0),
}


def share_of(chosen: Case) -> np.ndarray:
    return SIZE / SIZE.mean() if chosen.normalization == "masked" else np.ones(len(KINDS))


@functools.cache
def profile(chosen: Case, text: str = "fixedcount", rows: int = 240, seed: int = 0, rates: int = 4) -> GradientProfile:
    """Gradients under fixed counts, or another masker, of the objective of a case."""
    meter, method = (
        ToyGradients(KINDS, objective=chosen.objective),
        Method.parse(text, chosen.options, chosen.objective),
    )
    return gradient_profile(meter, method, rows=rows, rates=rates, masks=2, seed=seed)


def check_components(chosen: Case) -> None:
    truth, found = exact_noise(chosen.setting, KINDS, share_of(chosen)), decompose_gradient(profile(chosen))
    wanted = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"]}
    wanted |= {"mask": truth["A"] + truth["B"], "total": sum(truth.values())}
    slack = 0.02 * (chosen.normalization == "masked")  # the spread over rows of a ratio is known to first order
    for name, value in wanted.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - value) < Z * estimate.stderr + slack * value, (name, estimate, value)
        assert estimate.stderr < 0.12 * wanted["total"], f"{name}: too vague to fail"


@pytest.mark.parametrize("name", STANDARD)
def test_components_equal_enumeration(name):
    check_components(STANDARD[name])


@pytest.mark.parametrize("name", ["window", "bell"])
def test_components_are_unbiased_and_their_errors_honest(name):
    chosen = STANDARD[name]
    setting, truth = chosen.setting, exact_noise(chosen.setting, KINDS)
    found = [decompose_gradient(profile(chosen, rows=24, seed=seed)) for seed in range(40)]
    whole = [objective_by_quadrature(row, setting.eps, window=setting.window, bell=setting.bell)[1:] for row in KINDS]
    wanted = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"], "total": sum(truth.values())}
    wanted["mean_square"] = float((np.mean(whole, 0) ** 2).sum())
    for part, value in wanted.items():
        values = np.array([getattr(each, part).value for each in found])
        assert_mean(values, value, part)
        assert 0.6 < np.mean([getattr(each, part).stderr for each in found]) / values.std() < 1.6, part


@pytest.mark.parametrize("name", ["window", "bell"])
def test_t_taken_for_the_mask_ratio_would_be_seen(name, monkeypatch):
    """The mistake that windows and bells invite: counts weighed as at the mask ratio t itself."""
    right, chosen = counts._count_weights, STANDARD[name]

    def wrong(size: int, objective: Objective) -> counts.CountWeights:
        return right(size, Objective("power", eps=objective.eps, power=objective.power))

    monkeypatch.setattr(counts, "_count_weights", wrong)
    monkeypatch.setattr(counts, "_cache", type(counts._cache)())
    noticed(lambda: check_components(chosen), match="mask_")


BELOW = MethodOptions(mirror_below=0.6)
METHODS = [
    "standard", "fixedcount", "mirror", "fixedcount+mirror", "fixedcount+multisample", "partition",
    "fixedcount+partition3",
]  # fmt: skip
PREDICTED = [
    *map(belled, METHODS),
    *map(inside, ("standard", "fixedcount+mirror", "partition")),
    belled("complement"),
    inside("mirror", options=BELOW),
    belled("mirror", options=BELOW),
    under_bell("fixedcount", 2, 3, window=(0.2, 0.9)),
]
SKEWED = {"uniform": (1.0,), "falling": (6.0, 3.0, 1.0, 0.4, 0.2), "rising": (0.2, 0.4, 1.0, 3.0, 6.0)}


@pytest.mark.parametrize("chosen", PREDICTED, ids=str)
def test_predicted_noise_is_the_enumerated_one_whatever_the_density(chosen):
    method = chosen.method
    own = profile(chosen, profile_method(method).name, rows=150)
    plain = profile(chosen, rows=150)
    for shape, heights in SKEWED.items():
        truth = sum(exact_noise(replace(chosen.setting, density=heights), KINDS).values())
        found = step_noise(own, method, uniform_for(own, Tabulated(heights)), 8, 1.0, plain).estimate()
        assert abs(found.value - truth) < Z * found.stderr, (shape, found, truth)
        assert found.stderr < 0.2 * truth, f"{shape}: too vague to fail"


SMOOTH = Tabulated(torch.linspace(1.6, 0.6, 256, dtype=torch.float64), name="ppots")
SOURCES = ["strats", "lowdisc", "lowdisc+ppots", "strats+ppots+fixedcount", "strats+ppots+mirror"]
"""A lattice of exact counts is below: what it leaves of so few tokens needs more than four cells."""


@pytest.mark.parametrize("text", SOURCES)
@pytest.mark.parametrize("build", [inside, belled])
def test_what_a_source_removes_is_what_drawn_steps_lack(build, text):
    chosen, n = build("standard"), 8
    method = Method.parse(text, None, chosen.objective)
    sampler, found = method.sampler(SMOOTH), []
    rates = 16 if "fixedcount" in text else 4
    for seed in range(4):
        own = profile(chosen, profile_method(method).name, rows=60, seed=seed, rates=rates)
        plain = profile(chosen, rows=60, seed=seed, rates=rates)
        noise = step_noise(own, method, uniform_for(own, sampler), n, method.views.count, plain)
        found.append(noise.estimate().value)
    found = np.array(found)
    truth, error = drawn(method, sampler, n, 4000, ToyGradients(KINDS, objective=chosen.objective))
    spread = (found.std(ddof=1) ** 2 / 4 + error**2) ** 0.5
    # Straight lines from cell to cell cost up to 5 % of what strata and lattices leave.
    assert abs(found.mean() - truth) < 4.5 * spread + 0.05 * truth, (found.mean(), truth, spread)


LATTICES = [(case, "fixedcount"), (inside, "fixedcount"), (belled, "fixedcount"), (case, "complement")]


@pytest.mark.parametrize(("build", "masker"), LATTICES)
def test_a_lattice_meets_the_steps_of_exact_counts(build, masker):
    """Straight lines in their place put what it leaves 15 to 33 % of what it removes off."""
    chosen, found = build("standard"), []
    meter = ToyGradients([toy_row(6, 0), toy_row(5, 1)], objective=chosen.objective)
    lattice, plain, counted = (
        Method.parse(text, None, chosen.objective) for text in (f"lowdisc+{masker}", masker, "fixedcount")
    )
    n = 8 * plain.views.count
    for seed in range(3):
        own, of_counts = (
            gradient_profile(meter, method, rows=100, rates=8, masks=2, seed=seed) for method in (plain, counted)
        )
        noise = step_noise(own, lattice, uniform_for(own, SMOOTH), n, plain.views.count, of_counts)
        found.append(noise.estimate().value)
    (truth, error), (iid, _) = (drawn(method, SMOOTH, n, 4000, meter) for method in (lattice, plain))
    spread = (error**2 + np.var(found, ddof=1) / len(found)) ** 0.5
    assert abs(np.mean(found) - truth) < Z * spread + 0.05 * (iid - truth), (found, truth, iid)


def test_rows_of_several_sizes_are_left_out_as_if_they_had_never_been():
    chosen = inside("standard")
    own, lattice = profile(chosen, rows=12), Method.parse("lowdisc+fixedcount", None, chosen.objective)
    whole, fewer = (step_noise(each, lattice, uniform_for(each, SMOOTH), 8, 1.0) for each in (own, own.first(11)))
    assert torch.allclose(whole.per_row(torch.arange(11)), fewer.per_row(torch.arange(11)), rtol=1e-9)
    assert not torch.allclose(whole.per_row(torch.arange(12)), fewer.per_row(torch.arange(11)), rtol=1e-3)


def test_long_rows_go_on_straight():
    """Where the steps are many, and of all rows where masks are not counted; by the weight of each density."""
    own = profile(inside("standard"), rows=6)
    sized = replace(own, size=torch.tensor([3, 4, 64, 65, 300, 65]))
    stepped, smooth = (Curves(sized, SMOOTH, stepped=each) for each in (True, False))
    assert stepped.sizes.tolist() == [0, 3, 4, 64]
    assert stepped.group.tolist() == [1, 2, 3, 0, 0, 0]
    assert smooth.sizes.tolist() == [0]
    t = torch.linspace(0.01, 0.99, 50).double()
    curves = stepped(t).view(50, 4, -1)
    assert curves[:, 0].equal(smooth(t))
    assert curves[:, 0].sum(-1) == pytest.approx(SMOOTH.weight(t))
    for column, size in ((1, 3), (3, 64)):
        assert curves[:, column].sum(-1) == pytest.approx(weight_at(t, SMOOTH, sized, size))
    ones = torch.ones(4, dtype=torch.float64)
    assert (stepped.in_cells(0) @ torch.ones(len(own.cell)).double()) == pytest.approx(ones)
    long = stepped.in_cells(4).sum(1)
    assert long == pytest.approx(ones, abs=0.02)
    assert not torch.allclose(long, ones, atol=1e-5), "a count's weight is not quite 1 / p(t)"


def test_cells_on_one_step_stand_for_one_value():
    """Of a row of one token all of them do, as many times as they were measured."""
    own = profile(STANDARD["bell without eps"], rows=6, rates=16)
    curves = Curves(replace(own, size=torch.tensor([1, 1, 1, 2, 2, 2])), Uniform(), stepped=True)
    one, two = curves(torch.tensor([0.1, 0.9]).double()).view(2, 2, -1).unbind(1)
    share = own.cell.bincount().double() / len(own.cell)
    assert torch.allclose(one, share.expand(2, -1))
    assert torch.allclose(two.sum(1), torch.ones(2).double())
    assert float(two[0, -1]) == 0 == float(two[1, 0])
    assert (two >= 0).all()


@pytest.mark.parametrize("name", ["window", "lower half", "bell"])
def test_floors_equal_enumeration(name):
    own = profile(STANDARD[name], rows=450)
    assert_floors(gradient_floor(own), STANDARD[name].setting, KINDS, own.edges.numpy())


@functools.cache
def nested(chosen: Case):
    meter, counted = ToyGradients(MIXED, objective=chosen.objective), Method.parse("fixedcount", None, chosen.objective)
    return nested_masks(meter, gradient_profile(meter, counted, rows=480, rates=4, masks=2, seed=0), seed=0)


SPLIT = ["window", "llada2", "bell", "bell in a window"]


@pytest.mark.parametrize("name", SPLIT)
def test_targets_and_context_of_a_equal_enumeration(name):
    chosen = STANDARD[name]
    found, share = nested(chosen), share_of(chosen)
    kind = found.profile.rows % len(KINDS)
    for i, row in enumerate(MIXED):
        exact = exact_parts_under(chosen.setting, row)
        a = exact["count"] + exact["targets"] + exact["context"]
        for part in ("targets", "context"):
            values = getattr(found, part)[0, kind == i]
            assert_mean(values, exact[part] * share[i] ** 2, f"{part} of {row.size} tokens")
            assert float(values.std()) / len(values) ** 0.5 < 0.1 * a * share[i] ** 2, f"{part}: too vague to fail"


def chances_of_counts(law: torch.Tensor) -> list[np.ndarray]:
    """The probabilities of every count in each stratum of a law of counts."""
    low, edges = np.concatenate(([0.0], law.cumsum(0)))[:-1], np.linspace(0.0, 1.0, _STRATA + 1)
    return [
        (np.minimum(low + law.numpy(), b) - np.maximum(low, a)).clip(min=0) / (b - a)
        for a, b in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("name", SPLIT)
def test_count_and_rate_are_unbiased_over_the_counts_that_are_drawn(name):
    """Over every choice of a row's counts: rare counts would need too many drawn ones."""
    chosen = STANDARD[name]
    for row in MIXED[:2]:
        law = _law_of_counts(row.size, chosen.objective)
        every = torch.arange(1, row.size + 1)
        mean = torch.tensor(np.array([masked_gradients(row, k)[1].mean(0) for k in every.tolist()]))
        c = coefficients_at_unit_weight(chosen.objective, every, row.size) * chosen.setting.scale
        mean = mean * c[:, None]
        of_stratum = [chances for chances in chances_of_counts(law) for _ in range(_PER_STRATUM)]
        found = {"count": 0.0, "rate": 0.0}
        for counts_of_row in itertools.product(range(row.size), repeat=len(of_stratum)):
            chance = math.prod(one[k] for one, k in zip(of_stratum, counts_of_row, strict=True))
            if chance:
                k = torch.tensor(counts_of_row)
                g = mean[k].repeat_interleave(_MASKS, 0)
                drawn_law = _RowLaw(k + 1, row.size, law, chosen.objective)
                parts = drawn_law.parts((g @ g.T)[None], torch.zeros(len(g), len(g)), torch.linspace(0, 1, 5).double())
                found = {part: value + chance * float(parts[part]) for part, value in found.items()}
        exact = exact_parts_under(chosen.setting, row)
        assert found == pytest.approx({part: exact[part] for part in found}, rel=2e-4), row.size


def least_of(setting: Setting, edges: np.ndarray) -> dict[str, float]:
    """The least noise of one view and of balanced views over Standard's, by enumeration, cell by cell."""
    width, rows = np.diff(edges), {"one_view": [], "balanced": []}
    for row in MIXED:
        k, of_t = np.arange(1, row.size + 1), count_edges(setting, row.size)
        chance = np.diff(of_t)
        c = np.array([count_coefficient(setting, row.size, each) for each in k]) / (row.size * chance)
        _, variance, additive = (np.array(each) for each in zip(*(of_count(row, each) for each in k), strict=True))
        low, high = np.maximum(of_t[:-1, None], edges[:-1]), np.minimum(of_t[1:, None], edges[1:])
        share = (high - low).clip(min=0) / width
        rows["one_view"].append(c**2 * variance @ share)
        rows["balanced"].append(c**2 * (variance - additive) @ share)
    truth = exact_noise(setting, MIXED)
    standard = truth["A"] + truth["B"]
    # Rounding makes zeros negative.
    return {name: (np.sqrt(np.mean(each, 0).clip(min=0)) @ width) ** 2 / standard for name, each in rows.items()}


@pytest.mark.parametrize("name", ["window", "bell"])
def test_the_least_of_each_class_equals_enumeration(name):
    found = nested(STANDARD[name])
    exact, split = least_of(STANDARD[name].setting, found.profile.edges.numpy()), split_masks(found)
    for part, value in exact.items():
        estimate = getattr(split, f"least_{part}")
        assert abs(estimate.value - value) < Z * estimate.stderr, (part, estimate, value)
        assert estimate.stderr < 0.1 * exact["one_view"], f"{part}: too vague to fail"
    assert 0 < split.least_balanced.value < split.least_partition.value


def test_cells_follow_the_mask_ratios():
    """A narrow window has no ratio that needs more masks than another, nor a lowest cell that must be split."""
    chosen = in_window("standard", 0.45, 0.55)
    narrow, half = profile(chosen, rows=6), profile(STANDARD["lower half"], rows=6)
    assert len(narrow.width) == 4
    assert narrow.cell.bincount().tolist() == [2] * 4
    assert half.cell.bincount()[0] > half.cell.bincount()[-1] == 2
    plain = gradient_profile(ToyGradients(KINDS), Method.parse("fixedcount"), rows=6, rates=4, masks=2, seed=0)
    assert torch.equal(masks_per_cell(plain.edges, 2, plain.objective), plain.cell.bincount())


def test_long_responses_in_a_narrow_window_are_measured_at_counts_that_occur():
    """Of 200 tokens most counts have no t of double precision; the weights and factors of the others are finite."""
    objective = Objective(window=(0.45, 0.55))
    law = _law_of_counts(200, objective)
    assert float(law.sum()) == pytest.approx(1.0)
    assert float(law[:30].sum() + law[170:].sum()) < 1e-9
    middle = law[80:120]
    assert float(middle.sum()) > 0.8
    weights = counts.count_weights(200, objective)
    assert weights.mean.isfinite().all()
    assert weights.square.isfinite().all()
    factors = coefficients_at_unit_weight(objective, torch.arange(1, 201), 200)
    assert factors[law > 0].isfinite().all()
    assert (factors[law > 0] > 0).all()


@pytest.mark.parametrize("bell", [(2.0, 2.0), (5.0, 2.0)])
def test_the_fine_grid_gives_a_bells_law_of_counts(bell):
    """At both ends, where the mask ratio rises as a root of the place."""
    objective = Objective("bell", bell=bell)
    weights = counts._count_weights(200, objective)
    exact = count_law(200, bell, objective.eps, 1.0, power=0) / 200
    found = weights.mean @ weights.step
    assert float((found - exact).abs().sum() / exact.sum()) < 1e-5
    assert float((found / exact - 1).abs().max()) < 5e-3
