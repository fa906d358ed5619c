"""Blocks are rows to the noise: bit for bit with one block, unbiased and of known variance with several."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.loss import row_losses, token_losses
from stabledllm.method_checks import check_blocks
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.ppots.adaptive import AdaptiveDensity, AdaptiveOptions
from stabledllm.training.blocks import InBlocks
from stabledllm.training.statistics import StepStatistics
from tests.checks.moments import check_mean, check_variance
from tests.checks.statistics import assert_mean, assert_variance
from tests.oracle import Setting, conditional, moments, panels, step_variance, toy_row
from tests.statistical.cases import FITTED, OTHER_OBJECTIVES, UNBIASED, WINDOWS, case

LENGTHS = (7, 2, 5, 1, 9, 4)
PROMPT = 3
METHODS = ["standard", "strats+ppots+mirror", "lowdisc+fixedcount", "lowdisc+complement", "isad-exact+partition2"]


def step(lengths=LENGTHS) -> Rows:
    """Rows of unequal responses behind a prompt, padded on the right."""
    place = torch.arange(PROMPT + max(lengths) + 2)
    ends = torch.tensor(lengths)[:, None] + PROMPT
    maskable = (place >= PROMPT) & (place < ends)
    delimiter = maskable & (place % 3 == 0)
    return Rows(torch.arange(len(lengths)), len(lengths), maskable, place, delimiter)


def part(rows: Rows, own: slice) -> Rows:
    return Rows(rows.position[own], rows.step_rows, rows.maskable[own], rows.token_index, rows.delimiter[own])


def units_of(rows: Rows, size: int, own: slice = slice(None), *, from_start: bool = False) -> Units:
    blocks = Blocks(size, from_start)
    counts = blocks.counts(rows.maskable)
    return Units.of(part(rows, own), blocks, (counts.cumsum(0) - counts)[own], int(counts.sum()))


def draw(rows: Rows, size: int, text: str, own: slice = slice(None), step_index: int = 4):
    method = Method.parse(text, MethodOptions(mirror_below=0.6))
    sampler = method.sampler(Tabulated(FITTED))
    return units_of(rows, size, own).draw(method, Key(3, step_index), sampler)


@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("size", [max(LENGTHS), 1000])
def test_one_block_per_row_is_the_ordinary_draw_bit_for_bit(text, size):
    rows = step()
    method = Method.parse(text, MethodOptions(mirror_below=0.6))
    plain = method.draw(Key(3, 4), rows, method.sampler(Tabulated(FITTED)))
    blocks = draw(rows, size, text)
    for name in ("t", "weight", "active"):
        assert torch.equal(getattr(blocks, name), getattr(plain, name))
    used = plain.mask & plain.active[..., None]
    assert used.any()
    assert torch.equal(blocks.mask, used)
    assert torch.equal(blocks.coefficient, plain.coefficient * plain.active[..., None])


@pytest.mark.parametrize("text", METHODS)
def test_the_split_into_micro_batches_changes_no_draw(text):
    whole = draw(step(), 3, text)
    for cut in (1, 3):
        parts = [draw(step(), 3, text, own) for own in (slice(0, cut), slice(cut, None))]
        for name in ("t", "weight", "mask", "coefficient", "active"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


def test_a_lattice_spans_the_units_of_the_whole_step():
    drawn = draw(step(), 3, "lowdisc")
    n = len(drawn.t)
    assert n == sum(-(-length // 3) for length in LENGTHS)
    torch.testing.assert_close(drawn.t.sort().values.diff(), torch.full((n - 1,), 1 / n), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "from_start"), [(3, False), (4, True), (3, True), (100, True)])
def test_units_part_the_maskable_tokens_and_their_shares_add_up_to_1(size, from_start):
    rows = step()
    units = units_of(rows, size, from_start=from_start)
    seen = torch.zeros(rows.maskable.shape, dtype=torch.int64)
    for u in range(len(units.row)):
        places = units.place[u][units.rows.maskable[u]]
        assert len(places) <= size
        assert not from_start or len({int(place) // size for place in places}) == 1, "one block of the row"
        seen[units.row[u], places] += 1
    assert torch.equal(seen, rows.maskable.long())
    shares = torch.zeros(len(LENGTHS)).index_add_(0, units.row, units.share)
    torch.testing.assert_close(shares, torch.ones(len(LENGTHS)))
    assert units.rows.position.tolist() == list(range(len(units.row)))


def test_block_ids_written_out():
    maskable = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()
    attended = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    assert Blocks(2).ids(maskable, attended).tolist() == [[0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 2, 3]]


def test_blocks_from_the_start_written_out():
    """A prompt of 5 and blocks of 4: its last token shares a block with the first three of the response."""
    maskable = (torch.arange(11) >= 5) & (torch.arange(11) < 10)
    blocks, attended = Blocks(4, from_start=True), torch.arange(11) < 10
    assert blocks.ids(maskable[None], attended[None]).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1]]
    assert (blocks.lead(maskable[None]).tolist(), blocks.counts(maskable[None]).tolist()) == ([1], [2])
    rows = Rows(torch.tensor([0]), 1, maskable[None], torch.arange(11), None)
    units = Units.of(rows, blocks, torch.tensor([0]), 2)
    assert [units.place[u][units.rows.maskable[u]].tolist() for u in (0, 1)] == [[5, 6, 7], [8, 9]]
    torch.testing.assert_close(units.share, torch.tensor([0.6, 0.4], dtype=torch.float64))


def test_what_units_add_is_what_rows_lose():
    drawn = draw(step(), 3, "mirror")
    nll = torch.rand(int((drawn.mask & drawn.active[..., None]).sum()))
    tokens = token_losses(nll, drawn.mask, drawn.coefficient, drawn.active)
    each = drawn.units.per_unit(tokens.sum(1))
    rows = torch.zeros(len(LENGTHS)).index_add_(0, drawn.units.row, each)
    torch.testing.assert_close(rows, row_losses(nll, drawn.mask, drawn.coefficient, drawn.active))


TOYS = (toy_row(3, seed=1), toy_row(2, seed=2))
"""Two blocks of a row, at the places 1 to 3 and 4 to 5."""


def rows_of_two_blocks(n: int) -> Rows:
    maskable = torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool().expand(n, -1)
    delimiter = torch.zeros(7, dtype=torch.bool)
    delimiter[[1 + i for i in TOYS[0].delimiter] + [4 + i for i in TOYS[1].delimiter]] = True
    return Rows(torch.arange(n), n, maskable, torch.arange(7), delimiter.expand(n, -1))


def features(drawn, toys=TOYS, places=([1, 2, 3], [4, 5])) -> torch.Tensor:
    """Row loss and its gradient under each drawn mask, through the library's own ``row_losses``; shape (n, F)."""
    out = []
    for f in range(toys[0].table.shape[2]):
        nll = torch.zeros(drawn.mask.shape, dtype=torch.float64)
        for toy, own in zip(toys, places, strict=True):
            state = (drawn.mask[..., own].long() << torch.arange(toy.size)).sum(-1)
            nll[..., own] = torch.from_numpy(toy.table[..., f])[state]
        used = drawn.mask & drawn.active[..., None]
        out.append(row_losses(nll[used], drawn.mask, drawn.coefficient, drawn.active))
    return torch.stack(out, dim=1)


STARTS = [
    *((one, Blocks(3)) for one in UNBIASED),
    *((one, Blocks(4, from_start=True)) for one in UNBIASED + OTHER_OBJECTIVES + WINDOWS),
]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("case", "blocks"), STARTS, ids=lambda one: f"blocks of {one.size}" if isinstance(one, Blocks) else str(one)
)
def test_loss_and_gradient_have_the_enumerated_mean_and_variance(case, blocks):
    """Two blocks of 3 and 2 tokens: sum_b (P_b / P) l_b, the blocks' noise independent under iid u."""
    n = 20_000
    parts = [(toy.size / 5, *moments(case.setting, toy)) for toy in TOYS]
    mean, variance = sum(s * m for s, m, _ in parts), sum(s**2 * v for s, _, v in parts)
    drawn = Units.of(rows_of_two_blocks(n), blocks, 2 * torch.arange(n), 2 * n).draw(
        case.method, Key(7, 0), case.sampler
    )
    samples = features(drawn)
    check_mean(samples, mean, case)
    check_variance(samples, variance, case)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("text", "like"),
    [
        ("lowdisc+ppots+fixedcount", "ppots+fixedcount"),
        ("lowdisc+ppots+fixedcount+mirror", "ppots+fixedcount+mirror"),
        ("lowdisc+complement", "complement"),
        ("lowdisc+partition", "partition"),
        ("strats+fixedcount", "fixedcount"),
    ],
)
def test_a_step_in_blocks_has_the_exact_variance_of_its_units(text, like):
    """Loss and gradient of steps of 4 rows of two equal blocks: a lattice and strata span all 8 units."""
    n, steps, toy, method, chosen = 4, 1500, toy_row(3), Method.parse(text), case(like)
    maskable = torch.ones(n * steps, 6, dtype=torch.bool)
    rows = Rows(torch.arange(n * steps), n * steps, maskable, torch.arange(6))
    units = Units.of(rows, Blocks(3), 2 * torch.arange(n * steps), 2 * n * steps)
    u = torch.cat([method.source.uniforms(Key(3, step), 2 * n, torch.device("cpu")) for step in range(steps)])
    method = replace(method, objective=chosen.objective)
    drawn = units.fold(method.draw_at(chosen.sampler.icdf(u), Key(5, 0), units.rows, chosen.sampler))
    means = features(drawn, (toy, toy), ([0, 1, 2], [3, 4, 5])).view(steps, n, -1).mean(1)
    source = method.source.name
    strata = method.source.count(2 * n) if source == "strats" else 0
    exact = step_variance(chosen.setting, toy, source, 2 * n, strata)
    check_mean(means, moments(chosen.setting, toy)[0], text)
    check_variance(means, exact, text)
    by_rows = step_variance(chosen.setting, toy, source, n, strata and method.source.count(n)) / 2
    assert source == "strats" or abs(by_rows[0] / exact[0] - 1) > 0.03, "units numbered as rows would be seen"


@pytest.mark.statistical
def test_an_adaptive_density_learns_the_moments_of_units():
    """What training hands to it are units with what each adds to its row's loss: E[(P_b / P)^2 l_b^2] by cell of t."""
    n, chosen = 60_000, case("standard")
    drawn = Units.of(rows_of_two_blocks(n), Blocks(3), 2 * torch.arange(n), 2 * n).draw(
        chosen.method, Key(9, 0), Uniform()
    )
    nll = torch.zeros(drawn.mask.shape, dtype=torch.float64)
    for toy, own in zip(TOYS, ([1, 2, 3], [4, 5]), strict=True):
        state = (drawn.mask[..., own].long() << torch.arange(toy.size)).sum(-1)
        nll[..., own] = torch.from_numpy(toy.table[..., 0])[state]
    tokens = token_losses(nll[drawn.mask], drawn.mask, drawn.coefficient, drawn.active)
    statistics = StepStatistics()
    adaptive = AdaptiveDensity(AdaptiveOptions(rates=4), shared_noise=True, cost=torch.ones_like, eps=0.1)
    statistics.follow(adaptive)
    every = {"counted": torch.ones(n, dtype=torch.bool), "row_weight": torch.ones(n)}
    InBlocks._count(SimpleNamespace(statistics=statistics), drawn, None, every, tokens, n)
    statistics.finish_step(lambda table: table, Uniform())
    found = adaptive.sums[3] / adaptive.sums[0]
    for low, high, value in zip(adaptive.edges[:-1].tolist(), adaptive.edges[1:].tolist(), found.tolist(), strict=True):
        t, dt = panels(chosen.setting.kinks(3), low, high)
        squares = [(toy.size / 5) ** 2 * float(dt @ conditional(chosen.setting, toy, t)[1][:, 0]) for toy in TOYS]
        assert value == pytest.approx(sum(squares) / 2 / (high - low), rel=0.06), (low, high)


def shared(rows: Rows, size: int, text: str, own: slice = slice(None)):
    method = Method.parse(text)
    return units_of(rows, size, own).draw(method, Key(3, 4), method.sampler(), part(rows, own))


def test_one_t_for_all_blocks_of_a_row_is_that_of_ordinary_rows():
    rows, method = step(), Method.parse("lowdisc")
    drawn = shared(rows, 3, "lowdisc")
    plain = method.draw(Key(3, 4), rows, method.sampler())
    assert torch.equal(drawn.t, plain.t[drawn.units.row])
    parts = [shared(rows, 3, "lowdisc", own) for own in (slice(0, 2), slice(2, None))]
    for name in ("t", "mask", "coefficient"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(drawn, name)), "any split"


@pytest.mark.statistical
def test_one_t_keeps_the_mean_and_adds_what_the_blocks_then_share():
    """Var = sum_b s_b^2 A_b + Var_t(sum_b s_b g_b), s_b = P_b / P; with a t of its own for each the B_b add up."""
    toys, shares, n = TOYS, (0.6, 0.4), 40_000
    setting = Setting(masker="fixedcount")
    t, dt = panels(np.union1d(setting.kinks(3), setting.kinks(2)), 0.0, 1.0)
    each = [conditional(setting, toy, t) for toy in toys]
    means = [mean[:, 0] for mean, _ in each]
    together = sum(s * g for s, g in zip(shares, means, strict=True))
    mean = float((dt * together).sum())
    pattern = sum(
        s**2 * (dt * (square[:, 0] - g**2)).sum() for s, g, (_, square) in zip(shares, means, each, strict=True)
    )
    variance = float(pattern + (dt * together**2).sum() - mean**2)
    own = sum(s**2 * float(moments(setting, toy)[1][0]) for s, toy in zip(shares, toys, strict=True))
    assert variance > 1.2 * own
    maskable = torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool().expand(n, -1)
    rows = Rows(torch.arange(n), n, maskable, torch.arange(7))
    method = Method.parse("fixedcount", objective=Objective(eps=0.1))
    units = Units.of(rows, Blocks(3), 2 * torch.arange(n), 2 * n)
    drawn = units.draw(method, Key(7, 0), method.sampler(), rows)
    nll = torch.zeros(drawn.mask.shape)
    for toy, places in zip(toys, ([1, 2, 3], [4, 5]), strict=True):
        state = (drawn.mask[..., places].long() << torch.arange(toy.size)).sum(-1)
        nll[..., places] = torch.from_numpy(toy.table[..., 0])[state]
    losses = row_losses(nll[drawn.mask], drawn.mask, drawn.coefficient, drawn.active)
    assert_mean(losses, mean)
    assert_variance(losses, variance)


@pytest.mark.parametrize("text", ["syrm", "ema"])
def test_what_has_no_meaning_in_blocks_is_refused(text):
    with pytest.raises(UserError, match=f"^method '{text}': '{text}' and block_size contradict: .*\\.$"):
        check_blocks(Method.parse(text))


def test_every_unit_has_a_uniform_t():
    """Marginally, over steps: the first and the last unit of a lattice."""
    t = torch.stack([draw(step(), 3, "lowdisc", step_index=s).t for s in range(700)])
    assert isinstance(Method.parse("lowdisc").sampler(), Uniform)
    for unit in (0, -1):
        assert_mean(t[:, unit], 0.5)
        assert_variance(t[:, unit], 1 / 12)
