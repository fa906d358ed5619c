"""Rows of pictures: MMaDA's layout, and the core's laws (objective, A, B, C, correlation, invariance) on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stabledllm.data.rows import collate
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.forward.packing import Packing
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers.fixed_count import count_masses
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.variance.components import components, nested_losses
from tests.checks.statistics import assert_mean, assert_variance
from tests.fakes.mmada import CODES, MASK, TOKENS, WORDS, enumerated_moments, model, rows

COSINE = Objective(weighting="cosine")
SKEWED = Tabulated(torch.linspace(0.3, 2.0, 23))


@pytest.fixture(scope="module")
def network():
    return model()


@pytest.fixture(scope="module")
def exact(network):
    return enumerated_moments(network, rows(3))


def meter(network, data, objective=COSINE) -> LossMeter:
    return LossMeter(MeteredModel(network, MASK, TOKENS.eos), data, objective)


def losses(network, method: str, n: int, data, sampler=None, seed: int = 1) -> torch.Tensor:
    """n draws of each row's loss, shape (rows, n)."""
    parsed = Method.parse(method, objective=COSINE)
    sampler = sampler or Uniform()
    u = torch.rand(len(data) * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    row = torch.arange(len(data)).repeat_interleave(n)
    found = meter(network, data).losses(row, sampler.icdf(u), parsed, Key(seed, 0), sampler)
    return found.view(len(data), n)


def mmada_layout(caption, codes, width):
    """As Show-o's and MMaDA's prompting put a row together, spelled out."""
    text = [13, 15, *caption, 16]
    pads = width - len(text)
    ids = [14] * pads + text + [11] + [WORDS + int(c) for c in codes] + [12]
    return ids, [False] * pads + [True] * (len(ids) - pads)


def test_rows_have_mmadas_layout():
    data = rows(5, width=9)
    batch = collate(data, 0)
    for i, row in enumerate(data):
        ids, seen = mmada_layout(row.caption, row.codes, 9)
        assert batch["input_ids"][i].tolist() == ids
        assert batch["attention_mask"][i].tolist() == seen
        image = [9 < place < len(ids) - 1 for place in range(len(ids))]
        assert batch["maskable"][i].tolist() == image, "the image's tokens, not its marks nor the caption"
    assert len({len(row) for row in data}) == 1


def test_without_its_caption_a_row_keeps_its_length_and_its_picture():
    row = rows(4)[3]
    bare = row.without_caption()
    assert len(bare) == len(row)
    assert bare.input_ids == mmada_layout((), row.codes, row.width)[0]
    assert row.hidden + len(row.caption) == bare.hidden


def test_padding_of_the_caption_changes_no_logit(network):
    """The width of the caption's part is seen by nobody: rotary attention knows distances only."""
    narrow, wide = rows(6, width=8), rows(6, width=21)
    found = []
    for data in (narrow, wide):
        batch = collate(data, 0)
        with torch.no_grad():
            logits = network(batch["input_ids"], batch["attention_mask"]).logits
        found.append(logits[batch["maskable"]])
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)  # the angles of positions are in float32


def test_packed_rows_of_pictures_give_what_padded_ones_give(network):
    data = rows(6)
    batch = collate(data, 0)
    bins = Packing.of(batch["attention_mask"])
    assert int(bins.real.sum()) == int(batch["attention_mask"].sum()) < batch["input_ids"].numel()
    selected = bins.pack(batch["maskable"], False)
    with torch.no_grad():
        ids = batch["input_ids"]
        packed = network(
            bins.pack(ids, 0),
            bins.real,
            selected,
            segment_ids=bins.segment_ids,
            position_ids=bins.position_ids,
        ).logits
        padded = network(ids, batch["attention_mask"], batch["maskable"]).logits
    torch.testing.assert_close(packed[bins.row_major(selected).argsort()], padded, rtol=0, atol=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["standard", "ppots", "mirror", "ppots+mirror", "lowdisc+ppots+partition3"])
def test_every_method_has_the_enumerated_objective(network, exact, method):
    data = rows(3)
    found = losses(network, method, 1500, data, SKEWED if "ppots" in method else None)
    for i in range(len(data)):
        assert_mean(found[i], float(exact["pi"] @ exact["g"][i]), f"{method}, row {i}")


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [Uniform(), SKEWED], ids=["uniform", "skewed"])
def test_variance_is_the_enumerated_one(network, exact, sampler):
    data, pi = rows(3), exact["pi"]
    mass = count_masses(sampler, 4, "cosine").numpy()
    found = losses(network, "ppots", 3000, data, sampler)
    for i in range(len(data)):
        expected = float((pi**2 / mass) @ exact["square"][i] - (pi @ exact["g"][i]) ** 2)
        assert_variance(found[i], expected, f"row {i}")


@pytest.mark.statistical
def test_a_b_and_c_are_the_enumerated_ones(network):
    """Rows are drawn without replacement from 40: the components of that finite population."""
    data, replicates, each = rows(40, tokens=3), 150, 4
    exact = enumerated_moments(network, data)
    pi, g = exact["pi"], exact["g"]
    mean = g @ pi
    expected = {
        "A": float(((exact["square"] - g**2) @ pi).mean()),
        "B": float(((g**2) @ pi - mean**2).mean()),
        "C": float(mean.var(ddof=1)),
    }
    found = []
    for seed in range(replicates):
        nested = nested_losses(
            meter(network, data),
            Method.parse("standard", objective=COSINE),
            rows=each,
            rates=3,
            masks=2,
            seed=seed,
            design="iid",
        )
        found.append(torch.stack(components(nested)))
    table = torch.stack(found)
    for k, name in enumerate("ABC"):
        assert_mean(table[:, k], expected[name], name)


def test_mirrored_masks_of_a_picture_are_exact_counts_that_overlap_as_little_as_they_can(network):
    data = rows(2, tokens=7)
    row = torch.zeros(400, dtype=torch.int64)
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    m = meter(network, data)
    batch, draw = m.draw(row, t, Method.parse("mirror", objective=COSINE), Key(0, 0), Uniform(), torch.arange(400))
    k = draw.mask.sum(-1)
    assert (k[:, 0] == k[:, 1]).all()
    assert k.min() == 1
    assert k.max() == 7
    both = (draw.mask[:, 0] & draw.mask[:, 1]).sum(1)
    assert both.tolist() == (2 * k[:, 0] - 7).clamp(min=0).tolist()
    assert not (draw.mask & ~batch["maskable"][:, None]).any()


@pytest.mark.statistical
def test_correlation_of_mirrored_views_is_the_enumerated_one(network):
    """Exactly 2 of 4 tokens: the second view is the complement of the first, so that Cov is known."""
    data = rows(1)
    bits = np.array(list(itertools.product((0, 1), repeat=4)), dtype=bool)
    from tests.fakes.mmada import enumerated_losses

    values, _ = enumerated_losses(network, data[0])
    by_mask = {tuple(b): v for b, v in zip(bits[1:], values, strict=True)}
    pairs = np.array([(by_mask[tuple(b)], by_mask[tuple(~b)]) for b in bits if b.sum() == 2])
    expected = float((pairs[:, 0] * pairs[:, 1]).mean())
    row, t = torch.zeros(2000, dtype=torch.int64), torch.full((2000,), 0.33, dtype=torch.float64)
    views, used = meter(network, data).view_losses(row, t, Method.parse("mirror", objective=COSINE), Key(3, 0))
    assert used.all()
    assert_mean(views[:, 0] * views[:, 1], expected, "product of the views")


def test_codes_are_offset_by_the_text_vocabulary():
    row = rows(1)[0]
    ids = row.input_ids[row.prompt_length : -1]
    assert [i - TOKENS.first for i in ids] == row.codes.tolist()
    assert max(ids) < WORDS + CODES
