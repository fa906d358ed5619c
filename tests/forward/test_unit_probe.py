"""The probe of Fast-dLLM v2 measures the losses of training: a block's first token from the noisy block before it."""

from __future__ import annotations

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.forward.blocks import BlockMeter, UnitMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key, Stream
from tests.fakes.block_models import write_fast_dllm, write_sdar

ROW = TokenRow(list(range(10, 30)), 4)
"""Blocks of 8 counted from the first token: units of 4, 8 and 4 tokens."""
DRAWS = 300


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    loaded = load_model(str(write_fast_dllm(tmp_path_factory.mktemp("hub"), std=0.5)))
    loaded.model.double().eval()
    return loaded


def training_losses(loaded, method: Method) -> torch.Tensor:
    """The share of the second block in the loss of rows in training mode: its t is 1, that of the others uniform."""
    meter = BlockMeter(loaded, [ROW], Objective(), block_size=8)
    t = torch.rand(DRAWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t[:, 1] = 1.0
    row, losses = torch.zeros(DRAWS, dtype=torch.long), []
    loaded.model.train()
    for chunk in meter.chunks(row, method.views.count):
        batch, draw = meter.draw(row, t, method, Key(5, 0), Uniform(), chunk)
        with torch.no_grad():
            nll = meter.cross_entropies(batch, draw)
        tokens = torch.zeros(draw.mask.shape, dtype=torch.float64)
        used = draw.mask & draw.active[..., None]
        tokens = tokens.masked_scatter(used, nll * draw.coefficient[used]).sum(1) / draw.active.sum(1)[:, None]
        losses.append(tokens[:, 8:16].sum(1))
    loaded.model.eval()
    return torch.cat(losses)


@pytest.mark.statistical
@pytest.mark.parametrize("text", ["standard", "fixedcount+mirror"])
def test_a_unit_is_measured_as_training_sees_it(loaded, text):
    method = Method.parse(text)
    meter = UnitMeter(loaded, [ROW], Objective(), block_size=8)
    second, ones = torch.ones(DRAWS, dtype=torch.long), torch.ones(DRAWS, dtype=torch.float64)
    probed = meter.losses(second, ones, method, Key(6, 0)) / meter.units_per_row
    trained = training_losses(loaded, method)
    error = (probed.var() / DRAWS + trained.var() / DRAWS).sqrt()
    assert abs(probed.mean() - trained.mean()) < 4.5 * error
    clean = BlockMeter(loaded, [ROW], Objective(), block_size=8).block_losses(
        second[:1] * 0, ones[:1], method, Key(6, 0)
    )
    assert abs(probed.mean() - clean[0, 1]) > 10 * error, "as in decoding would be seen"
    assert not loaded.model.training
    assert not loaded.model.starts_as_trained


def test_the_block_before_has_a_t_that_is_no_other_one(loaded):
    """Designs draw the units' own t from the same key at the same positions."""
    meter, key, n = UnitMeter(loaded, [ROW], Objective(), block_size=8), Key(7, 0), 64
    u = key.row_uniforms(Stream.RATE, torch.arange(n))
    second = torch.ones(n, dtype=torch.long)
    _, draw = meter.draw(second, torch.ones(n).double(), Method(), key, Uniform(), torch.arange(n))
    before = draw.mask[:, 0, 4:8].double().mean(1)
    assert before.mean() == pytest.approx(0.5, abs=0.15)
    assert abs(float(torch.corrcoef(torch.stack((before, u)))[0, 1])) < 0.45


def test_with_one_t_for_a_row_the_probe_is_that_of_training_too(loaded):
    t, row, key = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0]), Key(3, 0)
    losses = [
        BlockMeter(loaded, [ROW], Objective(), block_size=8, as_trained=trained).losses(row, t, Method(), key)
        for trained in (True, False)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("start", ["sdar", "clean"])
def test_where_training_asks_the_clean_block_no_other_block_has_noise(tmp_path, start):
    write = write_sdar if start == "sdar" else write_fast_dllm
    loaded = load_model(str(write(tmp_path, std=0.5)))
    if start == "clean":
        loaded.model.config.block_start = "clean"
    meter = UnitMeter(loaded, [ROW], Objective(), block_size=8)
    _, draw = meter.draw(torch.tensor([1]), torch.ones(1).double(), Method(), Key(0, 0), Uniform(), torch.arange(1))
    assert draw.mask[0, 0].nonzero()[:, 0].tolist() == list(range(8, 16))
