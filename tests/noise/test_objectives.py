"""Objectives by name against what peers publish, and the identities of docs/objectives.md, by full enumeration."""

from __future__ import annotations

import itertools
import re
from itertools import permutations

import numpy as np
import pytest
import torch

from stabledllm.build import build_objective
from stabledllm.config.objectives import NAMED
from stabledllm.config.settings import ObjectiveSettings
from stabledllm.errors import UserError
from stabledllm.method_checks import check_autoregressive
from stabledllm.noise.bell import USUAL, proposal
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers.base import MaskInput
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import largest_ratio
from stabledllm.noise.streams import Key
from stabledllm.noise.windows import InWindow
from tests.oracle import ToyRow, all_masks, objective_by_quadrature, panels, toy_row

ROW = toy_row(4, seed=3)
LLADA2 = (0.3, 0.8)


def named(name: str, **keys) -> Objective:
    return build_objective(ObjectiveSettings(name=name, eps=0.0, **keys))


def expected_loss(toy: ToyRow, objective: Objective, sampler=None) -> float:
    """The mean of the library's exact-count loss over all counts and all orders of the tokens, per token."""
    size, method, sampler = toy.size, Method.parse("fixedcount", objective=objective), sampler or Uniform()
    orders = torch.tensor(list(permutations(range(size))), dtype=torch.float64) / size
    edges = largest_ratio(torch.arange(size + 1), torch.tensor(size), objective.counts)
    t = ((edges[1:] + edges[:-1]) / 2).repeat_interleave(len(orders))
    chance = (sampler.cdf(edges[1:]) - sampler.cdf(edges[:-1])).repeat_interleave(len(orders)) / len(orders)
    rows = Rows(torch.arange(len(t)), len(t), torch.ones(len(t), size, dtype=torch.bool), torch.arange(size))
    given = MaskInput(t, orders.repeat(size, 1)[:, None], method.views, rows, sampler, objective)
    mask, coefficient, _ = method.masker(given)
    state = (mask.long() << torch.arange(size)).sum(-1)
    nll = torch.from_numpy(toy.table[..., 0])[state]
    each = (coefficient * objective.scale * nll * mask).sum((1, 2))
    return float(chance @ each)


def law(toy: ToyRow, window: tuple[float, float] = (0.0, 1.0)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, sum of the cross-entropies and number of tokens of every Bernoulli mask, t uniform in the window."""
    t, dt = panels(np.array([]), *window)
    held = all_masks(toy.size).sum(1)
    chance = (dt / (window[1] - window[0])) @ (t[:, None] ** held * (1 - t[:, None]) ** (toy.size - held))
    return chance, toy.masked_sums[:, 0], held


def pooled(toy: ToyRow, rows: int, window: tuple[float, float] = (0.0, 1.0)) -> float:
    """The pooled masked mean of a batch of that many rows, over all its masks; 0 where none is masked."""
    chance, total, held = law(toy, window)
    mean = 0.0
    for masks in itertools.product(range(len(chance)), repeat=rows):
        one = list(masks)
        if number := held[one].sum():
            mean += chance[one].prod() * total[one].sum() / number
    return mean


def limit(toy: ToyRow, window: tuple[float, float] = (0.0, 1.0)) -> float:
    chance, total, held = law(toy, window)
    return (chance @ total) / (chance @ held)


@pytest.mark.parametrize(
    ("name", "window"), [("masked-mean", (0.0, 1.0)), ("fast-dllm", (0.0, 1.0)), ("llada2", LLADA2)]
)
def test_a_pooled_mean_is_the_limit_of_growing_batches_and_no_batch_of_its_own(name, window):
    found = expected_loss(ROW, named(name))
    assert found == pytest.approx(limit(ROW, window), rel=1e-9)
    one, two, three = (abs(pooled(ROW, rows, window) - found) for rows in (1, 2, 3))
    assert one > two > three > 1e-3 * found, "what peers compute depends on the batch"


def test_the_bias_of_a_pooled_mean_is_that_of_the_page():
    """To first order in 1/n; rows without a masked token are so rare at high t that they are of no account."""
    window, n = (0.7, 1.0), 3
    chance, total, held = law(ROW, window)
    ratio = limit(ROW, window)
    rest = (total - ratio * held) * held
    covariance = chance @ rest - (chance @ (total - ratio * held)) * (chance @ held)
    first_order = -covariance / (n * (chance @ held) ** 2)
    assert first_order < 0
    assert pooled(ROW, n, window) - ratio == pytest.approx(first_order, rel=0.15)


def test_a_masked_mean_per_row_is_the_bound_but_for_empty_masks():
    bound = expected_loss(ROW, named("elbo"))
    assert bound == pytest.approx(float(objective_by_quadrature(ROW, 0.0)[0]), rel=1e-9)
    assert pooled(ROW, 1) == pytest.approx(ROW.size / (ROW.size + 1) * bound, rel=1e-9)


def test_two_parts_of_the_bound_add_up_and_the_mean_over_a_window_is_its_part_over_its_width():
    parts = [expected_loss(ROW, Objective(eps=0.0, window=w, corrected=True)) for w in ((0.0, 0.4), (0.4, 1.0))]
    assert sum(parts) == pytest.approx(expected_loss(ROW, Objective(eps=0.0)), rel=1e-9)
    assert expected_loss(ROW, Objective(eps=0.0, window=(0.0, 0.4))) == pytest.approx(parts[0] / 0.4, rel=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_any_density_over_the_window_has_the_objective_of_independent_masks(power):
    objective = Objective("power", eps=0.05, power=power, window=LLADA2)
    truth = float(objective_by_quadrature(ROW, 0.05, power, LLADA2)[0])
    for sampler in (Uniform(), Tabulated([2.0, 1.0, 0.7, 1.1, 1.6])):
        assert expected_loss(ROW, objective, sampler) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("size", [1, 5, 400])
def test_the_counts_of_a_window(size):
    counts = Objective(eps=0.0, window=LLADA2).counts
    edges = counts.largest_ratio(torch.arange(size + 1), torch.tensor(size))
    assert (edges[0], edges[-1]) == (0, 1)
    assert bool((edges.diff() >= 0).all())
    t = torch.linspace(1e-6, 1 - 1e-6, 999, dtype=torch.float64)
    k = counts.masked_count(t, torch.tensor(size).expand(999))
    assert bool(((edges[k - 1] <= t) & (t <= edges[k])).all())
    mean = float((edges.diff() * torch.arange(1, size + 1)).sum())
    assert mean == pytest.approx(max(0.55 * size, 1), rel=0.08), "the mean count is that of the middle ratio"
    whole = InWindow(0.0, 1.0).largest_ratio(torch.arange(size + 1), torch.tensor(size))
    torch.testing.assert_close(whole, torch.arange(size + 1) / size, check_dtype=False)


def test_t_of_a_window_is_the_place_in_it():
    """Standard at the place 1/2 masks with probability (low + high) / 2, and MIRROR's bound is one of ratios."""
    objective, n = Objective(eps=0.0, window=LLADA2), 20_000
    rows = Rows(torch.arange(n), n, torch.ones(n, 4, dtype=torch.bool), torch.arange(4))
    drawn = Method.parse("standard", objective=objective).draw_at(
        torch.full((n,), 0.5).double(), Key(0, 0), rows, Uniform()
    )
    assert float(drawn.mask.double().mean()) == pytest.approx(0.55, abs=0.01)
    mirror = Method.parse("mirror", MethodOptions(mirror_below=0.55), objective)
    assert mirror.views.switches == pytest.approx((0.5,))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"name": "sdar", "normalization": "row"},
            "objective.normalization: expected token beside objective.name",
        ),
        ({"name": "llada2", "window": [0.2, 0.8]}, r"objective.window: expected \[0.3, 0.8\] beside"),
        ({"name": "bd3lm"}, "objective.window: expected the range of mask ratios beside objective.name=bd3lm"),
        ({"name": "elbo", "window": [0.5, 1.0]}, "objective.window: expected none beside objective.name=elbo"),
        ({"name": "sdar", "tokens": "cart"}, "objective.tokens: expected none beside objective.name=sdar"),
        (
            {"name": "window-generation", "corrected": True},
            "objective.corrected: expected none beside objective.name=window-generation",
        ),
        ({"window": [0.8, 0.3]}, "objective.window: expected two mask ratios 0 <= low < high <= 1"),
        ({"window": [0.5]}, "objective.window: expected two mask ratios"),
        ({"corrected": True}, "objective.corrected: expected objective.window beside it"),
        ({"bell": [2, 2]}, "objective.bell: expected objective.weighting=bell beside it"),
        ({"weighting": "bell", "bell": [0.5, 2]}, "objective.bell: expected two numbers from 1 to 100"),
        ({"weighting": "bell", "corrected": True}, "objective.corrected: expected false beside weighting 'bell'"),
        ({"weighting": "bell", "power": 0.5}, "objective.power: expected none for weighting 'bell'"),
        ({"name": "lift", "tokens": "cart"}, "objective.tokens: expected lift beside objective.name=lift"),
        ({"weighting": "cosine", "window": [0.1, 0.9]}, "objective.window: expected none beside weighting 'cosine'"),
        ({"weighting": "cosine", "normalization": "masked"}, "objective.normalization: expected none beside"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(keys, says):
    with pytest.raises(UserError, match=f"^{says}"):
        build_objective(ObjectiveSettings(**keys))


@pytest.mark.parametrize("method", ["complement", "clipped", "isad", "lowdisc+isad-exact"])
def test_a_part_that_a_window_has_no_place_for_is_refused_by_name(method):
    with pytest.raises(UserError, match=rf"^method '{re.escape(method)}' and objective.window \[0.3, 0.8\] "):
        Method.parse(method, objective=Objective(window=LLADA2))


def test_an_autoregressive_model_has_no_masked_tokens():
    for objective in (Objective(normalization="masked"), Objective(window=LLADA2)):
        with pytest.raises(UserError, match=r"^key 'objective': expected nothing but 'normalization'"):
            check_autoregressive(objective)


@pytest.mark.parametrize("below", [0.2, 0.3, 1.5])
def test_mirror_below_the_window_or_above_1_is_refused_where_mirror_is(below):
    options, objective = MethodOptions(mirror_below=below), Objective(window=LLADA2)
    with pytest.raises(UserError, match=rf"^mirror: expected mirror_below above .* 0.3 and at most 1, found {below}"):
        Method.parse("mirror", options, objective)
    assert Method.parse("lowdisc", options, objective).views.count == 1


def test_a_window_of_all_ratios_is_the_bound():
    whole = Objective(eps=0.0, window=(0.0, 1.0))
    assert whole.is_bound
    assert expected_loss(ROW, whole) == pytest.approx(expected_loss(ROW, Objective(eps=0.0)), rel=1e-9)
    assert not Objective(window=(0.0, 0.9)).is_bound


@pytest.mark.parametrize(("bell", "window"), [((2.0, 2.0), None), ((3.0, 2.0), None), ((2.0, 2.0), (0.2, 0.9))])
def test_a_bell_is_the_weighting_of_mask_ratios_that_it_says(bell, window):
    """``∫ w(t) c(t) dt``, c straight from the definition, under exact counts, pairs and any density of places."""
    objective = Objective("bell", eps=0.05, bell=bell, window=window)
    truth = float(objective_by_quadrature(ROW, 0.05, 0, window or (0.0, 1.0), bell)[0])
    for sampler in (Uniform(), Tabulated([2.0, 1.0, 0.7, 1.1, 1.6])):
        assert expected_loss(ROW, objective, sampler) == pytest.approx(truth, rel=1e-9)
    places = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    assert float(objective.p_mask(places).mean()) == pytest.approx(objective.mean_p_mask, abs=1e-5)
    inner = places[1:-1]  # the density of the ratio is one over the slope of the ratio
    slope = objective.ratio(places)[2:] - objective.ratio(places)[:-2]
    middle = slice(2000, -2000)
    torch.testing.assert_close(
        objective.density_at(inner)[middle], (2 * (places[1] - places[0]) / slope)[middle], rtol=1e-5, atol=0
    )


def test_a_flat_bell_is_the_bound_and_a_flat_bell_in_a_window_is_the_window():
    flat = Objective("bell", eps=0.0, bell=(1.0, 1.0))
    assert expected_loss(ROW, flat) == pytest.approx(expected_loss(ROW, Objective(eps=0.0)), rel=1e-9)
    window, inside = (Objective(w, eps=0.0, window=LLADA2, bell=b) for w, b in (("elbo", None), ("bell", (1.0, 1.0))))
    assert expected_loss(ROW, inside) == pytest.approx(expected_loss(ROW, window), rel=1e-9)


def test_the_usual_bell_of_settings_is_that_of_the_library():
    assert tuple(ObjectiveSettings(weighting="bell").keys["bell"]) == USUAL == Objective("bell").bell
    assert ObjectiveSettings(name="bell", bell=[3.0, 2.0]).keys["bell"] == [3.0, 2.0]
    assert "bell" not in ObjectiveSettings().keys
    assert "tokens" not in ObjectiveSettings().keys


def test_the_bell_as_a_density_has_bounded_weights_and_a_shape():
    sampler = proposal(2.0)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert float(sampler.weight(t).max()) <= 20
    assert float(sampler.weight(torch.tensor([0.5]))) == pytest.approx(1 / (0.05 + 0.95 * 1.5), rel=1e-3)
    with pytest.raises(UserError, match=r"^bell: expected a shape from 1 to 100, found bell=0\.5\.$"):
        Method.parse("bell", MethodOptions(bell=0.5))


def test_only_the_bound_is_the_bound():
    assert {name for name in NAMED if named(name, **({"window": [0.3, 0.8]} if name == "bd3lm" else {})).is_bound} == {
        "elbo", "sdar", "masked-mean-row",
    }  # fmt: skip


def test_keys_that_stand_for_the_name_are_the_same_objective():
    for name, one in NAMED.items():
        more = {"window": [0.4, 0.9]} if name == "bd3lm" else {}
        assert ObjectiveSettings(name=name, **more).keys == ObjectiveSettings(**one.keys, **more).keys
