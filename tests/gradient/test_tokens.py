"""The gradient's noise where tokens are weighed or chosen, against all masks, listed one by one."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from stabledllm.gradient.components import decompose_gradient
from stabledllm.gradient.mask_split import split_masks
from stabledllm.gradient.nested_masks import nested_masks
from stabledllm.gradient.paired import GivenHidden, PairedRates, paired_rates
from stabledllm.gradient.predicted import profile_method, step_noise, uniform_for
from stabledllm.gradient.profile import GradientProfile, gradient_profile
from stabledllm.gradient.tail import shape_of
from stabledllm.lab.measure.chosen_gradient import ChosenGradientLaboratory
from stabledllm.lab.measure.gradient_notes import notes_of_chosen
from stabledllm.lab.measure.options import DecomposeOptions
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.checks.gradients import drawn, exact_noise
from tests.checks.mask_split import exact_parts_under
from tests.checks.statistics import Z, assert_mean
from tests.fakes.gradients import ToyGradients, logits_of
from tests.mutation.inject import noticed
from tests.oracle import Setting, ToyRow, all_masks, panels, toy_row
from tests.statistical.cases import Case, case, in_window, masked_mean, under_bell

pytestmark = pytest.mark.statistical
KINDS = [toy_row(4, 0), toy_row(3, 1), toy_row(4, 2)]
SIZE = np.array([row.size for row in KINDS])
FALLING = (6.0, 3.0, 1.0, 0.4, 0.2)


def weighed(row: ToyRow) -> ToyRow:
    """The row with CART's weights in its table, by two loops over all masks: the oracle then knows of no weights."""
    table = row.table.copy()
    for masked, values in zip(all_masks(row.size), table, strict=True):
        for i in range(row.size):
            values[i] *= sum(0.05 * 0.9 ** (abs(i - j) - 1) for j in np.flatnonzero(~masked) if j != i)
    return ToyRow(table)


WEIGHED = [weighed(row) for row in KINDS]
"""Where all tokens are masked nothing is visible, and nothing counts."""


def pooled(text: str) -> Case:
    """The authors' rule: a pooled mean over masked tokens."""
    return masked_mean(case(text, power=1))


CART = {
    "pooled": pooled,
    "elbo": case,
    "window": lambda text: in_window(text, 0.3, 0.8),
    "bell": lambda text: under_bell(text, 2, 2),
}


def share_of(chosen: Case) -> np.ndarray:
    return SIZE / SIZE.mean() if chosen.normalization == "masked" else np.ones(len(KINDS))


def meter_of(chosen: Case, tokens: str) -> ToyGradients:
    return ToyGradients(KINDS, objective=replace(chosen.objective, tokens=tokens))


@functools.cache
def of_cart(chosen: Case, text: str) -> GradientProfile:
    meter = meter_of(chosen, "cart")
    method = Method.parse(text, chosen.options, meter.objective)
    return gradient_profile(meter, method, rows=240, rates=4, masks=2, seed=0)


@pytest.mark.parametrize("name", CART)
def test_weights_of_tokens_are_part_of_every_gradient(name):
    chosen = CART[name]("standard")
    truth, found = (
        exact_noise(chosen.setting, WEIGHED, share_of(chosen)),
        decompose_gradient(of_cart(chosen, "fixedcount")),
    )
    plain = exact_noise(chosen.setting, KINDS, share_of(chosen))
    wanted = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"], "total": sum(truth.values())}
    slack = 0.02 * (chosen.normalization == "masked")
    for part, value in wanted.items():
        estimate = getattr(found, part)
        assert abs(estimate.value - value) < Z * estimate.stderr + slack * value, (part, estimate, value)
        assert estimate.stderr < 0.12 * wanted["total"], f"{part}: too vague to fail"
    assert abs(sum(plain.values()) / wanted["total"] - 1) > 0.5, "without the weights another number"


@pytest.mark.parametrize("text", ["standard", "ppots", "fixedcount", "ppots+mirror", "complement", "multisample"])
def test_predicted_noise_of_every_method_holds_the_weights(text):
    chosen = case(text)
    method = Method.parse(text, None, meter_of(chosen, "cart").objective)
    own, plain = of_cart(case("standard"), profile_method(method).name), of_cart(case("standard"), "fixedcount")
    heights = FALLING if "ppots" in text else (1.0,)
    truth = sum(exact_noise(replace(chosen.setting, density=heights), WEIGHED).values())
    found = step_noise(own, method, uniform_for(own, Tabulated(heights)), 8, 1.0, plain).estimate()
    assert abs(found.value - truth) < Z * found.stderr, (found, truth)
    assert found.stderr < 0.2 * truth, "too vague to fail"


def test_a_is_split_with_the_weights_in_it():
    """The best sum over single tokens is that of the weighed gradients: what a token adds, and takes from others."""
    chosen = case("standard")
    profile = of_cart(chosen, "fixedcount")
    nested = nested_masks(meter_of(chosen, "cart"), profile, seed=0)
    kind = profile.rows % len(KINDS)
    for i, row in enumerate(WEIGHED):
        exact = exact_parts_under(chosen.setting, row)
        for part in ("count", "targets", "context", "rate"):
            assert_mean(getattr(nested, part)[0, kind == i], exact[part], f"{part} of {row.size} tokens")
    split = split_masks(nested)
    assert split.share_of_count.value + split.share_of_targets.value + split.share_of_context.value == pytest.approx(1)


EPS, DRAWN = 0.1, Key(11, 3)
LIFT, GIFT = (Objective(eps=EPS, tokens=tokens) for tokens in ("lift", "gift"))
SHAPED = {
    "lift in a window": Objective(eps=EPS, tokens="lift", window=(0.2, 0.95)),
    "lift under a bell": Objective("bell", eps=EPS, tokens="lift", bell=(2.0, 2.0)),
    "gift in a window": Objective(eps=EPS, tokens="gift", window=(0.3, 0.8)),
    "gift under a bell": Objective("bell", eps=EPS, tokens="gift", bell=(2.0, 2.0)),
    "gift as published": Objective(eps=EPS, tokens="gift", normalization="masked"),
}


class ToyChosen(GivenHidden, ToyGradients):
    """The toy's gradients under masks that may have been drawn given that they hide a token."""


def lifted(row: ToyRow, mask: int, p: float) -> tuple[np.ndarray, float]:
    """The mean of the gradient's sum over the tokens that LIFT keeps of a mask at p, and the mean of its square."""
    masks, sums = all_masks(row.size), row.masked_sums[:, 1:]
    count = int(masks[mask].sum())
    if 1 / 3 <= p <= 2 / 3 or 1 - p <= 0.1 or not mask:
        return sums[mask], float((sums[mask] ** 2).sum())
    nodes, weights = panels(np.array([]), 0.0, 1.0)
    join = (0.1 + nodes * (0.9 - p)) / (1 - p)
    rest, mean, square = np.flatnonzero(~masks[mask]), np.zeros(sums.shape[1]), 0.0
    for joined in itertools.chain.from_iterable(itertools.combinations(rest, r) for r in range(len(rest) + 1)):
        chance = float(weights @ (join ** len(joined) * (1 - join) ** (len(rest) - len(joined))))
        among = mask | sum(1 << int(i) for i in joined)
        asked = sorted(np.flatnonzero(masks[among]), key=lambda i: row.table[among, i, 0] * (1 if p > 0.5 else -1))
        kept = sums[sum(1 << int(i) for i in asked[:count])]
        mean, square = mean + chance * kept, square + chance * float((kept**2).sum())
    return mean, square


@dataclass(frozen=True)
class AtRate:
    """The gradient of one row given t: its mean (T, F), its second moment (T,), the weights of t (T,)."""

    mean: np.ndarray
    square: np.ndarray
    dt: np.ndarray


def setting_of(objective: Objective) -> Setting:
    """What t stands for, without the library."""
    plain = Setting(eps=EPS, window=objective.window or (0.0, 1.0), bell=objective.bell)
    if objective.normalization != "masked":
        return plain
    low, high = plain.window
    return replace(plain, scale=1 / ((1 - EPS) * (low + high) / 2 + EPS))


@functools.cache
def at_rates(objective: Objective, kind: int, heights: tuple[float, ...] = (1.0,)) -> AtRate:
    """Standard's gradient under the choice, given t, at weight 1 / p(t); p is a density of equal cells."""
    row, setting = KINDS[kind], setting_of(objective)
    fine = np.linspace(0.0, 1.0, 20_001)
    switches = np.interp([1 / 3, 2 / 3, 0.9], setting.p_mask(fine), fine)
    breaks = np.concatenate((switches, np.arange(6) / 5, 4.0 ** -np.arange(7), 1 - 4.0 ** -np.arange(7)))
    t, dt = panels(breaks, 0.0, 1.0)
    masks, held = all_masks(row.size), all_masks(row.size).sum(1)
    share = SIZE[kind] / SIZE.mean() if objective.normalization == "masked" else 1.0
    mean, square = [], []
    for p in setting.p_mask(t):
        if objective.tokens == "lift":
            law = p**held * (1 - p) ** (row.size - held) / row.size
            each = [lifted(row, mask, p) for mask in range(2**row.size)]
            mean.append(law @ np.array([one[0] for one in each]) / p)
            square.append(law @ np.array([one[1] for one in each]) / p**2 / row.size)
        else:
            x = logits_of(row)[:, 0].numpy()
            first = 1 / (1 + np.exp(-x))
            beta = np.sqrt(-first * np.log(first) - (1 - first) * np.log(1 - first))
            q = 1 - (1 - p) ** (beta / beta.mean())
            law = np.where(masks, q, 1 - q).prod(1)
            value = np.einsum("mp,mpf->mf", masks / q, row.table[..., 1:]) / row.size
            mean.append(law @ value)
            square.append(law @ (value**2).sum(1))
    height = np.array(heights)[np.minimum((t * len(heights)).astype(int), len(heights) - 1)] / np.mean(heights)
    factor = share * setting.scale
    return AtRate(factor * np.array(mean), factor**2 * np.array(square) / height, dt)


def exact_of(objective: Objective) -> dict[str, float]:
    """A, B and C of Standard's gradient over rows of every kind equally often."""
    each = [at_rates(objective, kind) for kind in range(len(KINDS))]
    whole = np.array([one.dt @ one.mean for one in each])
    rate = np.array([one.dt @ (one.mean**2).sum(1) for one in each])
    a = np.mean([one.dt @ one.square for one in each]) - rate.mean()
    share = SIZE / SIZE.mean() if objective.normalization == "masked" else np.ones(len(KINDS))
    spread = whole - share[:, None] * whole.mean(0)
    return {"A": a, "B": (rate - (whole**2).sum(1)).mean(), "C": (spread**2).sum(1).mean()}


@functools.cache
def paired(objective: Objective, rows: int = 24, seed: int = 0) -> PairedRates:
    meter = ToyChosen(KINDS, objective=objective)
    return paired_rates(meter, Method.parse("standard", objective=objective), rows=rows, rates=4, seed=seed)


def check_choices(objective: Objective) -> None:
    truth = exact_of(objective)
    found = [paired(objective, seed=seed).decomposition() for seed in range(30)]
    wanted = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"], "total": sum(truth.values())}
    for part, value in wanted.items():
        values = np.array([getattr(each, part).value for each in found])
        assert_mean(values, value, part)
        assert 0.6 < np.mean([getattr(each, part).stderr for each in found]) / values.std() < 1.6, part
        assert values.std() / len(values) ** 0.5 < 0.1 * wanted["total"], f"{part}: too vague to fail"


@pytest.mark.parametrize("name", SHAPED)
def test_windows_bells_and_shares_of_rows_are_in_it(name):
    truth, found = exact_of(SHAPED[name]), paired(SHAPED[name], 480).decomposition()
    wanted = {"mask_pattern": truth["A"], "mask_rate": truth["B"], "data": truth["C"], "total": sum(truth.values())}
    slack = 0.02 * (SHAPED[name].normalization == "masked")  # the spread over rows of a ratio is known to first order
    for part, value in wanted.items():
        estimate = getattr(found, part)
        assert abs(estimate.value - value) < Z * estimate.stderr + slack * value, (part, estimate, value)
        assert estimate.stderr < 0.12 * wanted["total"], f"{part}: too vague to fail"
    plain = exact_of(LIFT if SHAPED[name].tokens == "lift" else GIFT)
    assert abs(sum(plain.values()) / wanted["total"] - 1) > 0.05, "otherwise another number"


@pytest.mark.parametrize("objective", [LIFT, GIFT], ids=lambda o: o.tokens)
def test_where_the_model_chooses_a_holds_what_it_chooses_by(objective):
    check_choices(objective)


def test_a_square_at_one_t_taken_for_a_product_of_two_would_be_seen(monkeypatch):
    """The squared mean at a rate from a mask and itself: A would vanish."""
    right = PairedRates.moments

    def wrong(self, *args, **kwargs):
        moments = right(self, *args, **kwargs)
        return replace(moments, rate=(moments.rate + moments.second) / 2)

    monkeypatch.setattr(PairedRates, "moments", wrong)
    noticed(lambda: check_choices(GIFT), match="mask_pattern")


@pytest.mark.parametrize(("text", "heights"), [("standard", (1.0,)), ("ppots", FALLING), ("multisample", (1.0,))])
@pytest.mark.parametrize("objective", [LIFT, GIFT], ids=lambda o: o.tokens)
def test_predicted_noise_of_independent_masks_is_the_enumerated_one(objective, text, heights):
    method, own = Method.parse(text, objective=objective), paired(objective, 480)
    views = method.views.count
    each = [at_rates(objective, kind, heights) for kind in range(len(KINDS))]
    rate = [one.dt @ (one.mean**2).sum(1) for one in each]
    second = [one.dt @ one.square for one in each]
    whole = np.array([one.dt @ one.mean for one in each])
    truth = np.mean(second) / views + (1 - 1 / views) * np.mean(rate) - (whole.mean(0) ** 2).sum()
    assert profile_method(method).name == "standard"
    found = step_noise(
        own.profile, method, uniform_for(own.profile, Tabulated(heights)), 8, 1.0,
        second_moment=lambda sampler: own.moments(sampler, views).second,
    ).estimate()  # fmt: skip
    assert abs(found.value - truth) < Z * found.stderr, (found, truth)
    assert found.stderr < 0.2 * truth, "too vague to fail"


def test_exact_counts_under_lift_are_measured_by_themselves():
    """Their mean is Standard's, and their own masks give their noise; Standard's does not follow from it."""
    method = Method.parse("fixedcount", objective=LIFT)
    own = gradient_profile(ToyChosen(KINDS, objective=LIFT), method, rows=480, rates=4, masks=2, seed=0)
    found = step_noise(own, method, uniform_for(own), 8, 1.0).estimate()
    key_rows, rows = torch.arange(60_000), len(KINDS)
    meter = ToyChosen(KINDS, objective=LIFT)
    u = (key_rows.double() * 0.618033988749895) % 1
    ((_, _, g, _),) = meter.gradients(key_rows % rows, u, method, DRAWN)
    truth = float(((g - g.mean(0)) ** 2).sum(1).mean())
    assert abs(found.value - truth) < Z * (found.stderr**2 + (0.02 * truth) ** 2) ** 0.5
    whole = np.mean([one.dt @ one.mean for one in (at_rates(LIFT, kind) for kind in range(rows))], 0)
    assert float((g.mean(0) - torch.from_numpy(whole)).norm()) < 0.05 * float(np.linalg.norm(whole))
    with pytest.raises(ValueError, match="expected standard, found fixedcount"):
        paired_rates(meter, method, rows=2, rates=4, seed=0)


@pytest.mark.parametrize("text", ["lowdisc+ppots", "strats+ppots"])
@pytest.mark.parametrize("objective", [LIFT, GIFT], ids=lambda o: o.tokens)
def test_what_a_source_removes_is_what_drawn_steps_lack(objective, text):
    """Under a skewed density, whose weights are most of what all rows share."""
    own, density, meter = (
        paired(objective, 480),
        Tabulated(FALLING, name="ppots"),
        ToyChosen(KINDS, objective=objective),
    )

    def both(name: str):
        method = Method.parse(name, objective=objective)
        noise = step_noise(
            own.profile,
            method,
            uniform_for(own.profile, density),
            8,
            1.0,
            second_moment=lambda d: own.moments(d).second,
        )
        return noise.estimate(), *drawn(method, method.sampler(density), 8, 4000, meter)

    (noise, truth, error), (plain, iid, _) = both(text), both("ppots")
    assert abs(noise.value - truth) < Z * (noise.stderr**2 + error**2) ** 0.5 + 0.05 * truth, (noise, truth, error)
    assert noise.value < 0.9 * plain.value, "it removes something"
    assert truth < 0.9 * iid, "as of drawn steps"


@pytest.mark.parametrize(("objective", "text"), [(GIFT, "multisample"), (LIFT, "ppots"), (GIFT, "lowdisc+ppots")])
def test_the_laboratory_predicts_by_paired_masks_for_a_method_and_for_standard(objective, text):
    """Of independent masks both come from Standard's own; moments of its views and density, at its number of rows."""
    lab, own = object.__new__(ChosenGradientLaboratory), paired(objective, 480)
    lab.paired, lab.standard = own, Method.parse("standard", objective=objective)
    lab.counts, lab.options, lab._cost, lab._profiles = lab.standard, DecomposeOptions(), 1.5, {}
    method, sampler = Method.parse(text, objective=objective), Tabulated(FALLING if "ppots" in text else (1.0,))
    found, plain, common = lab.noise(method, sampler, rows=8, cost=3.0)
    assert common.rows.equal(own.profile.rows)
    assert (found.cost, plain.cost) == (3.0, 1.5)
    for noise, views, density in ((found, method.views.count, sampler), (plain, 1, Uniform())):
        heights = tuple(FALLING) if isinstance(density, Tabulated) and "ppots" in text else (1.0,)
        each = [at_rates(objective, kind, heights) for kind in range(len(KINDS))]
        rate = np.mean([one.dt @ (one.mean**2).sum(1) for one in each])
        whole = np.mean([one.dt @ one.mean for one in each], 0)
        truth = np.mean([one.dt @ one.square for one in each]) / views + (1 - 1 / views) * rate - (whole**2).sum()
        got = noise.estimate()
        if noise is found and not method.source.independent:
            assert got.value < truth, "less what the lattice removes"
        else:
            assert abs(got.value - truth) < Z * got.stderr, (text, got, truth)
            assert got.stderr < 0.2 * truth, "too vague to fail"


def test_the_tail_is_that_of_drawn_gradients():
    """Masks that were drawn given that they hide a token stand for plain ones, which often hide none."""
    meter, rows = ToyChosen(KINDS, objective=LIFT), torch.arange(20_000)
    u = (rows.double() * 0.618033988749895) % 1
    ((_, _, g, _),) = meter.gradients(rows % len(KINDS), u, Method.parse("standard", objective=LIFT), DRAWN)
    square = (g**2).sum(1)
    truth = shape_of(square.sort().values, torch.ones(len(square)).double())
    assert abs(paired(LIFT, 480).decomposition().pareto_k - truth) < 0.15, truth


def test_notes_tell_of_tails_and_of_methods_that_do_not_vary_as_predicted():
    parts = replace(paired(GIFT).decomposition(), pareto_k=0.9, rows_pareto_k=0.1)
    entries = [{"method": "lowdisc", "gradient": {"drawn_steps_agree": False}}]
    unknown, tail = notes_of_chosen(parts, entries, "gift")
    assert "objective.tokens=gift" in unknown
    assert "Pareto-k 0.90" in tail
    _, apart, rows = notes_of_chosen(replace(parts, pareto_k=0.1, rows_pareto_k=0.8), entries, "gift")
    assert apart.startswith("lowdisc: ")
    assert "Pareto-k 0.80" in rows
