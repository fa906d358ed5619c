"""A, B and C of the gradient and every method's step noise, against enumeration and against steps really drawn."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.gradient.components import decompose_gradient, row_mean_square
from stabledllm.gradient.counts import count_weights
from stabledllm.gradient.predicted import (
    at_equal_compute,
    data_noise,
    profile_method,
    ratio_to,
    step_noise,
    uniform_for,
)
from stabledllm.gradient.profile import gradient_profile, masks_per_cell
from stabledllm.gradient.row_moments import bernoulli_moments, direct_moments
from stabledllm.gradient.sketch import BLOCKS
from stabledllm.lab.measure.gradient_notes import rows_note
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.stats.intervals import Ratio
from tests.checks.gradients import drawn
from tests.checks.statistics import Z, assert_mean
from tests.fakes.gradients import ToyGradients
from tests.oracle import Setting, conditional, decomposition, moments, panels, toy_row
from tests.statistical.cases import case

pytestmark = pytest.mark.slow
COUNTED = Method.parse("fixedcount")
SMOOTH = Tabulated(torch.linspace(1.6, 0.6, 256, dtype=torch.float64), name="ppots")
SIZES = {"rows": 24, "rates": 5, "masks": 2}


def profiles(count: int, meter: ToyGradients, method: Method = COUNTED, **sizes):
    return [gradient_profile(meter, method, **(SIZES | sizes), seed=seed) for seed in range(count)]


@pytest.fixture(scope="module")
def many():
    return profiles(60, ToyGradients())


@pytest.fixture(scope="module")
def decomposed(many):
    return [decompose_gradient(p) for p in many]


def test_decomposition_equals_enumeration(decomposed):
    exact = decomposition(Setting(eps=0.1), ToyGradients().kinds)
    a, b, c = (float(exact[k][1]) for k in "ABC")
    found = decomposed

    def values(name: str) -> np.ndarray:
        return np.array([getattr(d, name).value for d in found])

    wanted = {"mask_pattern": a, "mask_rate": b, "data": c, "mask": a + b, "total": a + b + c}
    for name, truth in wanted.items():
        assert_mean(values(name), truth, name)
        # The jackknife's error is the spread over repetitions, to a factor.
        assert 0.6 < np.mean([getattr(d, name).stderr for d in found]) / values(name).std() < 1.6, name
    mean = np.mean([panel_mean(row) for row in ToyGradients().kinds], 0)
    assert_mean(values("mean_square"), float((mean**2).sum()), "|G|²")
    assert all(not d.sketch_error for d in found), "these gradients are exact"


def panel_mean(row) -> np.ndarray:
    t, dt = panels(Setting(eps=0.1).kinks(row.size), 0.0, 1.0)
    return dt @ conditional(Setting(eps=0.1), row, t)[0][:, 1:]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_another_objective(power):
    exact = decomposition(Setting(eps=0.1, power=power), ToyGradients().kinds)
    found = [decompose_gradient(p) for p in profiles(40, ToyGradients(power=power))]
    assert_mean(np.array([d.mask_pattern.value for d in found]), float(exact["A"][1]), "A")
    assert_mean(np.array([d.mask_rate.value for d in found]), float(exact["B"][1]), "B")


def test_binomial_weights_sum_to_the_bernoulli_law():
    weights = count_weights(4, Objective(eps=0.1))
    p = 0.9 * weights.t + 0.1
    assert torch.allclose((weights.mean * p * 4).sum(0), 1 - (1 - p) ** 4)
    assert torch.allclose(weights.square * p * 4, weights.mean)


def test_the_paper_s_gradient_variance_is_another_number(many, decomposed):
    """Mistake 12 of docs/published_mistakes.md: a mean of two norms is no variance; the traces here tell them apart."""
    exact = decomposition(Setting(eps=0.1), ToyGradients().kinds)
    truth = float(sum(exact[k][1] for k in "ABC"))
    mistaken = np.array([float(p.squares().sum(0).sqrt().mean()) for p in many])
    right = np.array([d.total.value for d in decomposed])
    assert_mean(right, truth)
    with pytest.raises(AssertionError):
        assert_mean(mistaken, truth)


def test_a_point_paired_with_itself_would_be_seen(many, monkeypatch):
    """The squared mean of a row from all products, its own squares included, is far too large."""
    exact = decomposition(Setting(eps=0.1), ToyGradients().kinds)
    plain = "stabledllm.gradient.profile.GradientProfile.pair_weight"
    monkeypatch.setattr(plain, property(lambda self: torch.outer(self.point_width, self.point_width)))
    found = np.array([decompose_gradient(p).data.value for p in many[:20]])
    with pytest.raises(AssertionError):
        assert_mean(found, float(exact["C"][1]))


def test_the_wrong_masker_s_profile_is_refused():
    profile = gradient_profile(ToyGradients(), Method.parse("complement"), **SIZES, seed=0)
    with pytest.raises(ValueError, match="expected a profile of fixedcount"):
        decompose_gradient(profile)


PREDICTED = [
    "standard", "ppots", "fixedcount", "ppots+fixedcount", "multisample3", "strats", "lowdisc", "strats+ppots",
    "strats+ppots+fixedcount", "mirror", "ppots+mirror", "fixedcount+mirror", "partition", "fixedcount+partition3",
    "complement", "ppots+complement",
]  # fmt: skip


TWO_KINDS = ToyGradients([toy_row(6, 0), toy_row(5, 1)])


@functools.cache
def profile_of_two_kinds(method: Method, seed: int):
    """Measured once for all methods that are predicted from it."""
    return gradient_profile(TWO_KINDS, method, rows=60, rates=8, masks=2, seed=seed)


@pytest.mark.parametrize("name", PREDICTED)
def test_predicted_step_noise_is_that_of_drawn_steps(name):
    method, n, meter = Method.parse(name), 8, TWO_KINDS
    sampler = method.sampler(SMOOTH)
    found = []
    for seed in range(4):
        own = profile_of_two_kinds(profile_method(method), seed)
        plain = profile_of_two_kinds(COUNTED, seed)
        noise = step_noise(own, method, uniform_for(own, sampler), n, method.views.count, plain)
        found.append(noise.estimate().value)
    found = np.array(found)
    truth, error = drawn(method, sampler, n, 4000, meter)
    spread = (found.std(ddof=1) ** 2 / 4 + error**2) ** 0.5
    # Straight lines from cell to cell cost up to 5 % of what strata and lattices leave.
    rough = 0.05 * truth if method.source.name != "iid" else 0.0
    assert abs(found.mean() - truth) < 4.5 * spread + rough, (found.mean(), truth, spread)


ENUMERATED = [
    "standard", "fixedcount", "complement", "multisample3", "fixedcount+multisample3", "mirror", "fixedcount+mirror",
    "partition", "fixedcount+partition4", "isad-exact", "isad-exact+mirror", "isad-exact+partition2",
]  # fmt: skip
BELOW = MethodOptions(mirror_below=0.6)
SKEWED = {"uniform": (1.0,), "falling": (6.0, 3.0, 1.0, 0.4, 0.2), "rising": (0.2, 0.4, 1.0, 3.0, 6.0)}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, None) for name in ENUMERATED), ("mirror", BELOW), ("fixedcount+mirror", BELOW)],
    ids=lambda v: v if isinstance(v, str) else "below" if v else "",
)
def test_predicted_noise_is_the_enumerated_one_whatever_the_density(name, options):
    """Every masker and coupling at its own weight and number of views, under strongly skewed p."""
    kinds = [toy_row(4, 0), toy_row(3, 1)]
    meter, method = ToyGradients(kinds), Method.parse(name, options)
    sizes = {"rows": 120, "rates": 4, "masks": 2, "seed": 1}
    own = gradient_profile(meter, profile_method(method), **sizes)
    plain = own if own.method.name == "fixedcount" else gradient_profile(meter, COUNTED, **sizes)
    for shape, heights in SKEWED.items():
        setting = replace(case(name, options).setting, density=heights)
        exact = [moments(setting, row) for row in kinds]
        second = np.mean([(variance + mean**2)[1:].sum() for mean, variance in exact])
        truth = second - (np.mean([mean[1:] for mean, _ in exact], 0) ** 2).sum()
        found = step_noise(own, method, uniform_for(own, Tabulated(heights)), 8, 1.0, plain).estimate()
        assert abs(found.value - truth) < Z * found.stderr, (shape, found, truth)
        assert found.stderr < 0.2 * truth, f"{shape}: too vague to fail"


def test_single_views_from_counts_are_less_noisy_than_drawn_pairs():
    meter, mirror = ToyGradients(eps=0.01), Method.parse("mirror")
    apart, whole = [], []
    for seed in range(25):
        own = gradient_profile(meter, mirror, **SIZES, seed=seed)
        plain = gradient_profile(meter, COUNTED, **SIZES, seed=seed)
        crossfit = uniform_for(own)
        apart.append(step_noise(own, mirror, crossfit, 8, 2.0, plain).estimate().value)
        whole.append(step_noise(own, mirror, crossfit, 8, 2.0).estimate().value)
    assert np.std(apart) < 0.9 * np.std(whole), (np.std(apart), np.std(whole))


def test_standard_at_equal_compute_is_a_plus_b_and_ratios_are_paired(many):
    profile = many[0]
    standard = step_noise(profile, Method(), uniform_for(profile), 32, 1.0)
    data = data_noise(profile)
    parts = decompose_gradient(profile)
    assert at_equal_compute(standard, data).value == pytest.approx(parts.mask.value)
    assert at_equal_compute(standard, data).stderr == pytest.approx(parts.mask.stderr)
    itself = ratio_to(standard, standard, data)
    assert itself == Ratio(1.0, 1.0, 1.0)
    double = step_noise(profile, Method.parse("multisample"), uniform_for(profile), 16, 2.0)
    ratio = ratio_to(double, standard, data)
    # 2 (A / 2 + B + C) - C over A + B.
    a, b, c = parts.mask_pattern.value, parts.mask_rate.value, parts.data.value
    assert ratio.value == pytest.approx((a + 2 * b + c) / (a + b))
    apart = (at_equal_compute(double, data).stderr ** 2 + (ratio.value * parts.mask.stderr) ** 2) ** 0.5
    assert 0 < ratio.ci_high - ratio.value < 0.6 * 1.96 * apart / parts.mask.value


def test_moments_of_standard_agree_both_ways(many):
    """Bernoulli drawn directly and Bernoulli from counts: the same second moment, the latter with less noise."""
    meter = ToyGradients()
    direct = [direct_moments(p, Uniform()).second.mean() for p in profiles(40, meter, Method())]
    counted = [bernoulli_moments(p, Uniform(), 1).second.mean() for p in many[:40]]
    direct, counted = (np.array([float(x) for x in values]) for values in (direct, counted))
    error = (direct.var() / 40 + counted.var() / 40) ** 0.5
    assert abs(direct.mean() - counted.mean()) < 4.3 * error
    assert counted.std() < direct.std()


def test_projection_in_blocks_averages():
    """Blocks of coordinates are unbiased each: their mean is the inner product, their spread an error."""
    profile = gradient_profile(ToyGradients(), COUNTED, **SIZES, seed=3)
    split = replace(
        profile, gram=profile.gram.repeat(BLOCKS, 1, 1, 1), mean_square=profile.mean_square.repeat(BLOCKS, 1)
    )
    assert float(row_mean_square(split).mean(0).sum()) == pytest.approx(float(row_mean_square(profile).sum()))
    found, plain = decompose_gradient(split), decompose_gradient(profile)
    assert found.mask.value == pytest.approx(plain.mask.value)
    assert found.mask.stderr == pytest.approx(plain.mask.stderr), "equal blocks have no spread"


def test_the_first_rows_alone():
    meter = ToyGradients()
    whole = gradient_profile(meter, COUNTED, rows=24, rates=5, masks=2, seed=4)
    short = gradient_profile(meter, COUNTED, rows=10, rates=5, masks=2, seed=4)
    found, expected = decompose_gradient(whole.first(10)), decompose_gradient(short)
    assert found.mask.value == pytest.approx(expected.mask.value)
    assert found.data.value == pytest.approx(expected.data.value, rel=1e-4)


def test_masks_go_where_the_noise_is():
    edges = torch.tensor([0.0, 0.03, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    masks = masks_per_cell(edges, 2, Objective())
    assert masks.min() == 2
    assert masks.max() == 6
    assert (masks.diff() <= 0).all()


def test_tails_are_told_apart(many):
    """A few rows of huge gradients are a tail of the rows; 1 / p_mask near 0 is one of the draws."""
    usual = decompose_gradient(many[0])
    assert not usual.heavy_rows
    scale = torch.ones(len(many[0].rows), dtype=torch.float64)
    scale[:4] = torch.tensor([3000.0, 300.0, 60.0, 20.0], dtype=torch.float64)
    found = decompose_gradient(replace(many[0], gram=many[0].gram * scale[:, None, None]))
    assert found.heavy_rows
    assert found.as_dict()["rows_pareto_k"] > 0.7
    steep = gradient_profile(ToyGradients(eps=1e-3), COUNTED, **SIZES, seed=0)
    assert decompose_gradient(steep).pareto_k > usual.pareto_k + 0.2


def test_of_too_few_rows_the_note_on_their_tail_prints_no_nan():
    told = rows_note(math.nan)
    assert "nan" not in told
    assert "grad.rows" in told
    assert "Pareto-k 0.82" in rows_note(0.82)
