"""Blocks are rows to the noise: bit for bit with one block, unbiased and of known variance with several."""

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
from tests.checks.statistics import assert_mean, assert_variance
from tests.oracle import Setting, conditional, moments, panels, toy_row
from tests.statistical.cases import FITTED, UNBIASED

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


@pytest.mark.statistical
@pytest.mark.parametrize("blocks", [Blocks(3), Blocks(4, from_start=True)], ids=["response", "start"])
@pytest.mark.parametrize("case", UNBIASED, ids=str)
def test_row_loss_has_the_enumerated_mean_and_variance(case, blocks):
    """Two blocks of 3 and 2 tokens: sum_b (P_b / P) l_b, the blocks' noise independent under iid u."""
    toys, n = (toy_row(3, seed=1), toy_row(2, seed=2)), 20_000
    mean, variance = 0.0, 0.0
    for toy in toys:
        m, v = moments(case.setting, toy)
        mean, variance = mean + toy.size / 5 * m[0], variance + (toy.size / 5) ** 2 * v[0]
    maskable = torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool().expand(n, -1)
    delimiter = torch.zeros(7, dtype=torch.bool)
    delimiter[[1 + i for i in toys[0].delimiter] + [4 + i for i in toys[1].delimiter]] = True
    rows = Rows(torch.arange(n), n, maskable, torch.arange(7), delimiter.expand(n, -1))
    drawn = Units.of(rows, blocks, 2 * torch.arange(n), 2 * n).draw(case.method, Key(7, 0), case.sampler)
    nll = torch.zeros(drawn.mask.shape)
    for toy, places in zip(toys, ([1, 2, 3], [4, 5]), strict=True):
        state = (drawn.mask[..., places].long() << torch.arange(toy.size)).sum(-1)
        nll[..., places] = torch.from_numpy(toy.table[..., 0])[state]
    losses = row_losses(nll[drawn.mask & drawn.active[..., None]], drawn.mask, drawn.coefficient, drawn.active)
    assert_mean(losses, float(np.asarray(mean)), str(case))
    assert_variance(losses, float(np.asarray(variance)), str(case))


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
    toys, shares, n = (toy_row(3, seed=1), toy_row(2, seed=2)), (0.6, 0.4), 40_000
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
