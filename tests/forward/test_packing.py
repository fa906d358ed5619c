"""Bins hold every token once, and what went through them comes back in the rows' order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.forward.packing import Packing
from stabledllm.models.bins import LONGEST, balanced_bins

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@given(LENGTHS)
def test_every_row_lies_in_one_bin_and_bins_are_even(lengths):
    bins = balanced_bins(lengths)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in rows) for rows in bins]
    assert len(bins) * max(filled) <= len(lengths) * max(lengths), "never more than padded rows"
    assert max(filled) <= (LONGEST + 1) * max(lengths)
    assert balanced_bins([]) == []


def test_typical_lengths_leave_hardly_any_padding():
    lengths = torch.randint(60, 260, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    bins = balanced_bins(lengths)
    width = max(sum(lengths[row] for row in rows) for rows in bins)
    assert sum(lengths) > 0.93 * width * len(bins)
    assert width < 1.7 * max(lengths)


@given(LENGTHS, st.integers(0, 10**6))
def test_packing_loses_and_moves_nothing(lengths, seed):
    width = max(lengths)
    attention = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    values = torch.arange(len(lengths) * width).view(-1, width) + 1
    bins = Packing.of(attention)
    packed = bins.pack(values, 0)
    assert sorted(packed[bins.real].tolist()) == sorted(values[attention].tolist())
    assert not packed[~bins.real].any()
    assert packed.numel() <= values.numel()
    row = (packed - 1).div(width, rounding_mode="floor")
    assert bins.position_ids[bins.real].tolist() == ((packed - 1) % width)[bins.real].tolist()
    for b in range(len(packed)):
        here = bins.real[b]
        pairs = set(zip(row[b, here].tolist(), bins.segment_ids[b, here].tolist(), strict=True))
        assert len(pairs) == len({r for r, _ in pairs}) == len({s for _, s in pairs}), "one segment a row"
    selected = attention & (torch.rand(attention.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    chosen = bins.pack(selected, False)
    rank = bins.row_major(chosen)
    assert torch.equal(values[selected][rank], packed[chosen])
    assert torch.equal(packed[chosen][rank.argsort()], values[selected])
