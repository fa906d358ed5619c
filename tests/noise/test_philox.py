"""Philox4x32-10 gives the known answers of its authors' Random123 distribution."""

import pytest
import torch

from stabledllm.noise import philox
from stabledllm.noise.philox import philox4x32
from tests.fakes.second_device import SECOND, second_device


def words(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, answer):
    low, high = words(key)
    found = philox4x32(*(torch.tensor([w]) for w in words(counter)), seed=low | high << 32)
    assert found.tolist() == [words(answer)]


def test_broadcasts_like_single_calls():
    rows, blocks = torch.arange(3)[:, None], torch.arange(4)[None]
    tail = torch.tensor(5), torch.tensor(6)
    together = philox4x32(blocks, rows, *tail, seed=9)
    assert together.shape == (3, 4, 4)
    assert torch.equal(together[2, 1], philox4x32(blocks[0, 1], rows[2, 0], *tail, seed=9))


@pytest.mark.parametrize("n", [0, 1, 70])
def test_an_accelerator_gives_the_same_bits(n, monkeypatch):
    """The CPU's are by NumPy, in several parts where there are many; another device's are by torch."""
    monkeypatch.setattr(philox, "_PART", 32)
    counters = torch.arange(n) * 61_356_675, torch.arange(n), torch.tensor(7), torch.tensor(2**32 - 1)
    here = philox4x32(*counters, seed=2**63 + 5)
    with second_device():
        there = philox4x32(*(counter.to(SECOND) for counter in counters), seed=2**63 + 5)
        assert there.device == SECOND
        assert torch.equal(there.cpu(), here)
    assert here.shape == (n, 4)
    assert here.dtype == torch.int64
