"""What decompose measures of a model in blocks is what training minimises, in its form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stabledllm.build import build_methods, set_blocks
from stabledllm.config.settings import DataSettings, DecomposeSettings
from stabledllm.errors import UserError
from stabledllm.forward.blocks import BlockMeter
from stabledllm.gradient.blocks import BlockSteps
from stabledllm.lab.decompose import run_decompose
from stabledllm.lab.measure.decompose import check_methods
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.fakes.block_models import write_fast_dllm, write_sdar

ROW, T = torch.tensor([0, 1]), torch.tensor([0.8, 0.6]).double()


def rows_of(loaded):
    from stabledllm.data.bundle import load_rows

    return load_rows("synthetic", loaded.tokenizer, DataSettings(), "train", 4, lambda text: None, wanted=4)[0]


def test_a_blocks_first_token_is_asked_as_training_asks_it(tmp_path):
    """In training mode the model has no dropout, so that its losses are those that are measured in training's form."""
    loaded = load_model(str(write_fast_dllm(tmp_path, std=0.3)))
    given = (loaded, rows_of(loaded), Objective())
    evaluated = BlockMeter(*given, block_size=8).losses(ROW, T, Method(), Key(0, 0))
    meter = BlockMeter(*given, block_size=8, as_trained=True)
    measured = meter.losses(ROW, T, Method(), Key(0, 0))
    loaded.model.config.block_start = "clean"
    torch.testing.assert_close(meter.losses(ROW, T, Method(), Key(0, 0)), evaluated)
    loaded.model.config.block_start = "noisy"
    assert (measured - evaluated).abs().min() > 1e-3

    batch, draw = meter.draw(ROW, T, Method(), Key(0, 0), Uniform(), torch.arange(2))
    loaded.model.train()
    nll = meter.cross_entropies(batch, draw).double()
    trained = torch.zeros(draw.mask.shape).double().masked_scatter(draw.mask, nll * draw.coefficient[draw.mask])
    torch.testing.assert_close(measured, trained.sum((1, 2)).detach())


def test_the_steps_gradients_are_in_that_form_too(tmp_path):
    loaded = load_model(str(write_fast_dllm(tmp_path, std=0.3)))
    sizes = {"rows": 2, "steps": 2, "seed": 0}
    evaluated, measured = (
        BlockSteps(loaded, rows_of(loaded), Objective(), block_size=8, parameters=["*norm*"], as_trained=as_trained)
        .measure(Method(), Uniform(), **sizes)
        .gram["raw"]
        for as_trained in (False, True)
    )
    assert not torch.allclose(measured, evaluated, rtol=1e-2)


def test_decompose_takes_the_form_from_its_settings(tmp_path):
    write_fast_dllm(tmp_path / "hub", std=0.3)
    sizes = {"rows": 4, "rates": 4, "masks": 2, "steps": 4, "forwards": 4, "methods": ["standard"]}
    probe = {"rows": 4, "rates": 4, "masks": 2, "starts": 2}
    means = {}
    for start in ("noisy", "clean"):
        given = {"model": str(tmp_path / "hub"), "data": {"train_rows": 8}, "out": str(tmp_path / start)}
        record = run_decompose(
            DecomposeSettings(block_start=start, probe=probe, **given, **sizes), say=lambda text: None
        )
        means[start] = record["methods"][0]["mean"]["value"]
    assert means["noisy"] != means["clean"]
    write_sdar(tmp_path / "sdar")
    with pytest.raises(UserError, match="key 'block_start': expected a model in blocks whose logits are shifted"):
        run_decompose(DecomposeSettings(model=str(tmp_path / "sdar"), block_start="clean"), say=lambda text: None)


def test_decompose_takes_the_blocks_of_its_settings(tmp_path):
    """The published layouts in other blocks than their own, and the shipped model as training in blocks would begin."""
    write_sdar(tmp_path / "sdar")
    sizes = {"rows": 4, "rates": 4, "masks": 2, "steps": 4, "forwards": 4, "methods": ["standard"]}
    probe = {"rows": 4, "rates": 4, "masks": 2, "starts": 2}
    for model, size in ((str(tmp_path / "sdar"), 16), ("tiny", 8)):
        given = {"model": model, "data": {"train_rows": 8}, "out": str(tmp_path / "out"), "block_size": size}
        record = run_decompose(DecomposeSettings(probe=probe, **given, **sizes), say=lambda text: None)
        assert record["blocks"]["block_size"] == size


def test_decompose_refuses_blocks_that_training_would_refuse():
    trained = SimpleNamespace(name="mine", model=SimpleNamespace(config=SimpleNamespace(block_size=8)))
    whole = SimpleNamespace(name="llada", model=SimpleNamespace(config=SimpleNamespace()))
    for loaded, found in ((trained, "expected 8, as model 'mine' was trained"), (whole, "expected a model with a bl")):
        with pytest.raises(UserError, match=f"key 'block_size': {found}"):
            set_blocks(loaded, DecomposeSettings(block_size=4))


def test_the_gradients_noise_under_cosine_is_refused():
    given = {"objective": {"weighting": "cosine"}, "methods": ["standard", "fixedcount"]}
    methods = build_methods(DecomposeSettings(**given))
    with pytest.raises(UserError, match=r"gradient=true and objective\.weighting 'cosine' contradict"):
        check_methods(methods, gradient=True)
    check_methods(methods, gradient=False)
