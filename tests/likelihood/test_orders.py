"""Bounds from random orders against enumeration: their laws, their order (ELBO, several orders, log p, TUBE)."""

import itertools
import math

import numpy as np
import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.likelihood.orders import OrderScores, effective_orders, log_mean, tangent
from tests.checks.statistics import assert_mean, assert_variance
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood import enumerated
from tests.likelihood.models import MASK, ROWS, tiny

ROW = TokenRow([3, 1, 4, 1, 5], prompt_length=2)
COPIES = 600


def order_sums(model, row: TokenRow, segments: int | None = None) -> list[float]:
    """The log-probability of the response in each of its orders, shown one by one or in segments."""
    feature, where, found = enumerated.log_probabilities(model, row), enumerated.places(row), []
    each, more = divmod(len(where), segments or len(where))
    sizes = [each + (i < more) for i in range(segments or len(where))]
    for order in itertools.permutations(where):
        total, at = 0.0, 0
        for size in sizes:
            hidden = feature(frozenset(order[at:]))
            total += sum(hidden[i] for i in order[at : at + size])
            at += size
        found.append(total)
    return found


def copies(model, row: TokenRow = ROW, n: int = COPIES, **more) -> OrderScores:
    """Many responses that are the same but for their noise."""
    return OrderScores.of(model, [row] * n, list(range(n)), seed=1, **more)


def test_orders_are_drawn_evenly_and_scored_exactly():
    model = tiny()
    wanted = order_sums(model, ROW)
    scores = copies(model)
    found = scores.orders([0])[:, 0, 0]
    assert scores.forwards == COPIES * 3, "a forward for each token"
    nearest = (found[:, None] - torch.tensor(wanted)).abs()
    assert float(nearest.amin(1).max()) < 1e-9
    for i in range(6):
        assert_mean((nearest[:, i] < 1e-9).double(), 1 / 6, f"order {i}")
    assert np.mean(wanted) == pytest.approx(enumerated.bound(enumerated.log_probabilities(model, ROW), ROW))


def law_of(value, sums: list[float], orders: int) -> tuple[float, float]:
    """Mean and variance of a function of independent orders, by listing them all."""
    drawn = torch.tensor(list(itertools.product(sums, repeat=orders)))
    values = value(drawn[:, None])
    return float(values.mean()), float(values.var(correction=0))


@pytest.mark.parametrize(("value", "orders"), [(log_mean, 1), (log_mean, 2), (log_mean, 3), (tangent, 2), (tangent, 4)])
def test_bounds_have_the_enumerated_law(value, orders):
    model = tiny()
    mean, variance = law_of(value, order_sums(model, ROW), orders)
    found = value(copies(model).orders(range(orders)))
    assert_mean(found, mean)
    assert_variance(found, variance)


def test_elbo_several_orders_log_likelihood_tube_in_this_order():
    for seed in range(3):
        sums = order_sums(tiny(seed), ROW)
        exact = math.log(np.mean(np.exp(sums)))
        below = [law_of(log_mean, sums, orders)[0] for orders in (1, 2, 4)]
        above = [law_of(tangent, sums, orders)[0] for orders in (4, 2)]
        assert below[0] == pytest.approx(np.mean(sums))
        assert below[0] < below[1] < below[2] < exact < above[0] < above[1]
    assert log_mean(torch.tensor([[sums]])).item() == pytest.approx(exact), "all orders: the likelihood itself"
    assert tangent(torch.full((1, 1, 4), -3.0)).item() == pytest.approx(-3.0), "equal at psi = p"


@pytest.mark.parametrize("segments", [1, 2, 3, 7])
def test_merged_steps_have_the_enumerated_law(segments):
    model = tiny()
    sums = order_sums(model, ROW, min(segments, 3))
    scores = copies(model)
    found = scores.merged([0], segments)[:, 0]
    assert scores.forwards == COPIES * min(segments, 3)
    assert_mean(found, float(np.mean(sums)))
    assert_variance(found, float(np.var(sums)))
    if segments >= 3:
        torch.testing.assert_close(found, scores.orders([0])[:, 0, 0])


def block_sums(model, row: TokenRow, start: int, end: int) -> list[float]:
    """The log-probability of one block in each of its orders after the clean ones before it."""
    found = []
    block = torch.tensor([0] * row.prompt_length + [1 + i // 2 for i in range(end - row.prompt_length)])
    for order in itertools.permutations(range(start, end)):
        total = 0.0
        for at, i in enumerate(order):
            ids = torch.tensor(row.input_ids[:end])
            ids[list(order[at:])] = MASK
            with torch.no_grad():
                logs = model(ids[None], torch.ones(1, end, dtype=torch.bool), block_ids=block[None]).logits[0]
            total += float(logs.log_softmax(-1)[i, row.input_ids[i]])
        found.append(total)
    return found


def test_a_model_in_blocks_has_orders_in_each_block_and_shows_all_at_once():
    model = tiny(block_size=2)
    scores = copies(model)
    logs = scores.orders(range(2))
    assert logs.shape == (COPIES, 2, 2)
    assert scores.forwards == COPIES * 2 * 2, "of 3 tokens in blocks of 2 and 1: two forwards an order"
    laws = [block_sums(model, ROW, 2, 4), block_sums(model, ROW, 4, 5)]
    for value in (log_mean, tangent):
        each = [law_of(value, sums, 2) for sums in laws]
        assert_mean(value(logs), sum(mean for mean, _ in each))
        assert_variance(value(logs), sum(variance for _, variance in each))
    merged = copies(model).merged([0], 1)[:, 0]
    feature = [
        sum(logs for logs in _at_once(model, ROW, start, end)) for start, end in ((2, 4), (4, 5))
    ]  # fmt: skip
    assert merged.numpy() == pytest.approx(sum(feature)), "one step for each block: nothing is random"


def _at_once(model, row: TokenRow, start: int, end: int) -> list[float]:
    block = torch.tensor([0] * row.prompt_length + [1 + i // 2 for i in range(end - row.prompt_length)])
    ids = torch.tensor(row.input_ids[:end])
    ids[start:end] = MASK
    with torch.no_grad():
        logs = model(ids[None], torch.ones(1, end, dtype=torch.bool), block_ids=block[None]).logits[0].log_softmax(-1)
    return [float(logs[i, row.input_ids[i]]) for i in range(start, end)]


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_exact_counts_have_the_law_of_the_bound(guidance):
    """Two draws in two strata, each with a mask of an exact count; with guidance, of the guided law."""
    model = tiny()
    feature = guided(model, ROW, guidance)
    where, halves = enumerated.places(ROW), ((0.0, 0.5), (0.5, 1.0))
    laws = []
    for low, high in halves:
        law = []
        for k in range(1, 4):
            share = max(0.0, min(high, k / 3) - max(low, (k - 1) / 3)) * 2
            masks = enumerated.subsets(where, k)
            law += [(share / len(masks), 3 / k * enumerated.total(feature, m)) for m in masks]
        laws.append(enumerated.moments(law))
    scores = copies(model, guidance=guidance)
    found = scores.counts(range(2), strata=2).mean(1)
    assert scores.forwards == COPIES * 2 * (2 if guidance else 1)
    assert_mean(found, sum(mean for mean, _ in laws) / 2)
    assert_variance(found, sum(variance for _, variance in laws) / 4)
    assert sum(mean for mean, _ in laws) / 2 == pytest.approx(enumerated.bound(feature, ROW))


def guided(model, row: TokenRow, guidance: float) -> enumerated.Feature:
    """The log-probabilities under guidance: the prompt masked in what is taken away."""

    def of(hidden: frozenset[int]) -> dict[int, float]:
        ids = torch.tensor(row.input_ids)
        noisy = ids.clone()
        noisy[sorted(hidden)] = MASK
        blind = noisy.clone()
        blind[: row.prompt_length] = MASK
        with torch.no_grad():
            one, other = (model(each[None]).logits[0] for each in (noisy, blind))
        logs = (other + (1 + guidance) * (one - other)).log_softmax(-1)
        return {i: float(logs[i, ids[i]]) for i in hidden}

    return of


def test_batches_change_nothing_and_a_number_decides_the_noise():
    model = tiny()
    whole = OrderScores.of(model, ROWS, [5, 0, 2], seed=3, tokens_per_forward=7).orders([1, 4])
    for i, number in enumerate((5, 0, 2)):
        alone = OrderScores.of(model, ROWS[i : i + 1], [number], seed=3).orders([1, 4])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-9)
    assert not torch.equal(whole, OrderScores.of(model, ROWS, [5, 0, 2], seed=4).orders([1, 4]))
    assert bool((effective_orders(whole) >= 1).all() & (effective_orders(whole) <= 2).all())


def test_refusals():
    with pytest.raises(UserError, match=r"decoding\.guidance: expected 0 for likelihoods of a model in blocks"):
        OrderScores.of(tiny(block_size=2), ROWS, [0, 1, 2], seed=0, guidance=1.0)
    with pytest.raises(UserError, match="expected a model of whole responses, found one in blocks"):
        OrderScores.of(tiny(block_size=2), ROWS, [0, 1, 2], seed=0).counts([0], 1)
    with pytest.raises(UserError, match="hundreds of nats apart"):
        tangent(torch.tensor([[[0.0, -2000.0]]]))
