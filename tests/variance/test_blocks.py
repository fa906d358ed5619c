"""A, B, C in blocks, the split of B and the steps of every method, against enumeration of every mask of every block."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from stabledllm.data.rows import TokenRow
from stabledllm.forward.blocks import BlockMeter
from stabledllm.forward.meter import MeteredModel
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio
from stabledllm.variance.blocks import NestedBlocks, RateSplit, measure_blocks, nested_blocks
from stabledllm.variance.components import components, decompose
from tests.checks.statistics import assert_mean
from tests.fakes.tables import block_tables, tiny_in_blocks
from tests.oracle import conditional, moments, panels, step_variance, toy_row
from tests.statistical.cases import FITTED, case

pytestmark = pytest.mark.statistical
EPS = 0.1
ROWS = [
    TokenRow([5, 6, 7, 1, 2, 3, 4, 5], 3),
    TokenRow([9, 8, 3, 3, 1], 1),
    TokenRow([4, 2, 2, 6, 1, 7, 5], 2),
]
"""Of 5, 4 and 5 tokens: in blocks of 2 three, two and three."""
STANDARD = case("standard", eps=EPS).setting


def method(text: str) -> Method:
    return Method.parse(text, objective=Objective(eps=EPS))


def meter_of(copies: int, model=None, rows=ROWS) -> BlockMeter:
    loaded = MeteredModel(model or tiny_in_blocks(), mask_id=0, pad_id=0)
    return BlockMeter(loaded, rows * copies, Objective(eps=EPS), block_size=2, tokens_per_batch=2**15)


class Exact:
    """The parts of the loss of rows whose blocks' cross-entropies are in tables."""

    def __init__(self, model):
        t, dt = panels(STANDARD.kinks(2), 0.0, 1.0)
        self.tables = [block_tables(model, row) for row in ROWS]
        self.parts = [np.array([toy.size for toy in row]) for row in self.tables]
        self.parts = [sizes / sizes.sum() for sizes in self.parts]
        pattern, own, shared, single, self.means = [], [], [], [], []
        for tables, part in zip(self.tables, self.parts, strict=True):
            each = [conditional(STANDARD, toy, t) for toy in tables]
            g = np.stack([mean[:, 0] for mean, _ in each]) * part[:, None]
            v = np.stack([square[:, 0] for _, square in each]) * part[:, None] ** 2 - g**2
            rate = (g**2) @ dt - (g @ dt) ** 2
            pattern.append(v.sum(0) @ dt)
            own.append(rate.sum())
            shared.append(g.sum(0) ** 2 @ dt - (g.sum(0) @ dt) ** 2)
            single.append((rate / part).sum())
            self.means.append(g.sum(0) @ dt)
        self.pattern, self.own, self.shared, self.single = map(np.array, (pattern, own, shared, single))
        self.data = np.var(self.means)

    def of_method(self, text: str) -> float:
        """Variance of the loss of one row, every block of which has a t of its own, iid."""
        setting = case(text, eps=EPS).setting
        noise = [
            sum(s**2 * moments(setting, toy)[1][0] for s, toy in zip(part, row, strict=True))
            for part, row in zip(self.parts, self.tables, strict=True)
        ]
        return np.mean(noise) + self.data


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(tiny_in_blocks())


@pytest.fixture(scope="module")
def nested() -> NestedBlocks:
    return nested_blocks(meter_of(400), method("standard"), rows=1200, rates=4, masks=2, seed=1, design="iid")


def test_every_component_is_unbiased(nested, exact):
    assert_mean(nested.cell_moments[1] @ nested.weight, exact.pattern.mean(), "A")
    assert_mean(nested.rate_noise, exact.own.mean(), "B, t of their own")
    assert_mean(nested.rate_noise_of_one_t, exact.shared.mean(), "B, one t")
    single = (nested.rate_noise_by_block / nested.part.clamp(min=1e-9)).where(nested.part > 0, 0.0).sum(1)
    assert_mean(single, exact.single.mean(), "B of single blocks")
    groups = [components(nested.select(keep))[2] for keep in torch.arange(1200).view(-1, 4)]
    assert_mean(torch.stack(groups), exact.data, "C")


def test_the_estimates_are_those_of_the_moments_and_their_errors_cover(nested, exact):
    nested = nested.select(torch.arange(300))
    parts, split = decompose(nested), RateSplit.of(nested)
    for estimate, truth in (
        (parts.mask_pattern, exact.pattern.mean()),
        (parts.mask_rate, exact.own.mean()),
        (parts.data, exact.data),
        (parts.total, exact.pattern.mean() + exact.own.mean() + exact.data),
        (parts.mean, np.mean(exact.means)),
        (split.of_blocks, exact.single.mean()),
        (split.between_blocks, exact.single.mean() - exact.shared.mean()),
        (split.between_rows, exact.shared.mean()),
        (split.own_t, exact.own.mean()),
    ):
        assert abs(estimate.value - truth) < 4.5 * estimate.stderr
        assert estimate.stderr < 0.1 * float(exact.pattern.mean()), "an error that says something"
    assert split.blocks_per_row == pytest.approx(float((nested.part > 0).sum(1).double().mean()))


@pytest.mark.parametrize("design", ["cells", "iid"])
def test_a_row_in_one_block_is_a_row(design):
    """The losses differ only in being drawn; B under one t is B under a t of its own."""
    one = nested_blocks(
        BlockMeter(MeteredModel(tiny_in_blocks(8), 0, 0), ROWS, Objective(eps=EPS), block_size=8),
        method("standard"), rows=3, rates=4, masks=3, seed=0, design=design,
    )  # fmt: skip
    torch.testing.assert_close(one.rate_noise, one.rate_noise_of_one_t)
    whole = decompose(one.by_unit())
    for name, estimate in decompose(one).as_dict().items():
        assert estimate["value"] == pytest.approx(whole.as_dict()[name]["value"]), name


@pytest.mark.parametrize("text", ["standard", "ppots", "mirror", "fixedcount", "complement"])
def test_drawn_steps_have_the_variance_of_the_method(text, exact):
    chosen = method(text)
    sampler = chosen.sampler(Tabulated(FITTED))
    found = measure_blocks(meter_of(40), chosen, sampler, rows=8, steps=300, seed=2)
    assert_mean(found.row_losses.flatten(), np.mean(exact.means), f"{text}, mean")
    count = found.squares.numel()
    assert_mean(found.squares.flatten() * count / (count - 1), exact.of_method(text), f"{text}, variance")
    assert found.per_row_variance.value == pytest.approx(float(found.squares.sum()) / (count - 1))


class TwoAlike(nn.Module):
    """Rows in two blocks of two tokens, whose cross-entropies are in the same table."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.table = torch.from_numpy(toy_row(2).table[..., 0])

    def forward(self, noisy, attention_mask, *, selected, targets, block_ids):
        masked = (noisy[:, 1:] == 0).view(-1, 2, 2)
        nll = self.table[(masked.long() << torch.arange(2)).sum(-1)].flatten(1)
        return SimpleNamespace(nll=nll[selected[:, 1:]] * self.one)


def test_one_t_for_blocks_that_answer_alike_costs_what_the_enumeration_says():
    """Two blocks with the same curve: under one t all of a block's B is between rows, and B is twice its own."""
    meter = meter_of(1000, TwoAlike(), [TokenRow([1, 1, 1, 1, 1], 1)])
    nested = nested_blocks(meter, method("standard"), rows=1000, rates=6, masks=4, seed=5, design="iid")
    t, dt = panels(STANDARD.kinks(2), 0.0, 1.0)
    mean, square = (x[:, 0] for x in conditional(STANDARD, toy_row(2), t))
    pattern, rate = (square - mean**2) @ dt / 2, mean**2 @ dt - (mean @ dt) ** 2
    assert_mean(nested.rate_noise, rate / 2, "B, t of their own")
    assert_mean(nested.rate_noise_of_one_t, rate, "B, one t")
    split = RateSplit.of(nested)
    assert split.own_t.stderr < 0.1 * rate, "an exchange of the two would be seen"
    assert split.of_blocks.value == pytest.approx(split.between_blocks.value + split.between_rows.value)
    assert abs(split.between_blocks.value) < 4.5 * split.between_blocks.stderr
    cost = (pattern + rate) / (pattern + rate / 2)
    assert split.cost_of_one_t.ci_low < cost < split.cost_of_one_t.ci_high < 1.3 * cost
    assert cost > 1.01
    assert ("more noise" in split.sentence()) == (split.cost_of_one_t.ci_low > 1)


@pytest.mark.parametrize(("text", "kind"), [("lowdisc", "standard"), ("strats+fixedcount", "fixedcount")])
def test_a_lattice_and_strata_span_the_blocks_of_the_whole_step(text, kind):
    rows, units = 3, 6
    meter = meter_of(40, TwoAlike(), [TokenRow([1, 1, 1, 1, 1], 1)])
    chosen = method(text)
    found = measure_blocks(meter, chosen, chosen.sampler(), rows=rows, steps=1200, seed=3)
    setting, source = case(kind, eps=EPS).setting, text.split("+")[0]
    truth = rows * float(step_variance(setting, toy_row(2), source, units, 3)[0])
    by_rows = rows * float(step_variance(setting, toy_row(2), source, rows, 2)[0])
    assert abs(by_rows / truth - 1) > 0.3, "units that are numbered as rows would be seen"
    count = len(found.squares)
    assert_mean(found.squares.flatten() * count / (count - 1), truth, text)


def test_block_losses_add_up_to_the_rows():
    meter, t = meter_of(1), torch.tensor([0.9, 0.5, 0.7]).double()
    row = torch.arange(3)
    for text in ("standard", "mirror", "complement"):
        each = meter.block_losses(row, t, method(text), Key(0, 0))
        torch.testing.assert_close(each.sum(1), meter.losses(row, t, method(text), Key(0, 0)))
        assert each[1, 2] == 0, "the second row has two blocks"


def test_what_one_t_costs_is_told_by_figures_that_differ():
    """A cost near 1 with a small error: no "1 (1 to 1): more noise"."""
    zero = Estimate(value=1.0, stderr=0.1, n=9)
    split = RateSplit(zero, zero, zero, zero, Ratio(1.0167, 1.0064, 1.0279), 6.0)
    assert "has 1.017 times (95 % interval 1.006 to 1.028) the noise" in split.sentence()
    assert split.sentence().endswith("more noise.")
