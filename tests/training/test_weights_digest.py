"""The digest of trained weights: another for any bit, the same in any pieces, and of trained weights alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stabledllm.training import weights_digest as module
from stabledllm.training.weights_digest import weights_digest
from tests.fakes import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_bit_of_any_weight_counts(dtype):
    model = tiny.model().to(dtype)
    before = weights_digest(model)
    for p in (next(model.parameters()), list(model.parameters())[-1]):
        bits = p.data.view(torch.int16)
        bits.view(-1)[-1] ^= 1
        assert weights_digest(model) != before
        bits.view(-1)[-1] ^= 1
    assert weights_digest(model) == before


def test_two_weights_that_change_places_are_others():
    model = nn.Linear(2, 1, bias=False)
    before = weights_digest(model)
    model.weight.data = model.weight.data.flip(1)
    assert weights_digest(model) != before


def test_frozen_weights_have_no_part_in_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = weights_digest(model)
    model[0].weight.data += 1
    assert weights_digest(model) == before


def test_pieces_change_nothing(monkeypatch):
    model = tiny.model()
    whole = weights_digest(model)
    monkeypatch.setattr(module, "_PIECE", 7)
    assert weights_digest(model) == whole
