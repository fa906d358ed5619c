"""The loss of an autoregressive model: all of its variance over rows is C."""

import pytest
import torch

from stabledllm.lab.autoregressive import decompose_autoregressive
from tests.fakes.meters import TokenMeter


def test_autoregressive_losses_have_only_data_noise():
    losses = torch.tensor([1.0, 2.0, 4.0, 5.0, 8.0], dtype=torch.float64)
    d = decompose_autoregressive(losses)
    assert d.mask_pattern.value == d.mask_pattern.stderr == d.mask_rate.value == d.mask_rate.stderr == 0.0
    assert d.data.value == d.total.value == pytest.approx(7.5)
    assert d.mean.value == pytest.approx(4.0)
    assert d.mean.stderr == pytest.approx((7.5 / 5) ** 0.5)


def test_an_autoregressive_model_has_the_spread_of_the_token_mean():
    token = TokenMeter((1, 4, 20), 3000, eps=0.05, normalization="token")
    of_row = token.nll.sum(1) / token.size
    found = decompose_autoregressive(token.share * of_row, token.share)
    assert found.data.value == pytest.approx(token.data, rel=1e-6)
    assert found.mean.value == pytest.approx(token.mean, rel=1e-9)
