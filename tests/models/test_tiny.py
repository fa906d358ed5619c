"""The shipped model is what it is said to be, and loading refuses what is not a model."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import torch

from stabledllm.config import load_recipe
from stabledllm.data.bundle import load_rows
from stabledllm.data.sources import load_examples
from stabledllm.decoding import DecodingOptions
from stabledllm.errors import UserError
from stabledllm.evaluation.accuracy import accuracy
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.objective import Objective
from stabledllm.training.run import train
from tests.checks.statistics import Z


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_it_is_small_enough_to_ship(tiny):
    assert 0.8e6 < sum(p.numel() for p in tiny.model.parameters()) < 1.2e6
    assert (files("stabledllm") / "assets" / "tiny" / "model.safetensors").stat().st_size < 5_000_000


@pytest.mark.parametrize(("level", "low", "high"), [("easy", 0.8, 1.0), ("hard", 0.05, 0.5)])
def test_it_solves_the_easy_problems_and_some_of_the_hard(tiny, level, low, high):
    examples = load_examples(f"synthetic:{level}", split="test", n=48, seed=0)
    assert low <= accuracy(tiny, examples, DecodingOptions(40, 40, 8), 48).strict.accuracy.value <= high


def test_fine_tuning_with_standard_improves_the_nll_significantly(tiny, tmp_path):
    settings = load_recipe(
        "sft-synthetic", ["steps=12", "data.validation_rows=48", "data.test_rows=1", f"out={tmp_path}"]
    )
    rows, _ = load_rows("synthetic:hard", tiny.tokenizer, settings.data, "validation", 48)
    train(settings, say=lambda _: None)

    def nll(loaded):
        meter = LossMeter(loaded, rows, Objective())
        return row_nll(meter)

    gain = nll(tiny) - nll(load_model(str(tmp_path / "model")))
    assert float(gain.mean()) > Z * float(gain.std()) / len(gain) ** 0.5


def test_padding_and_batching_change_no_prediction(tiny):
    ids = torch.randint(0, 256, (2, 20))
    attention = torch.ones(2, 20, dtype=torch.bool)
    attention[1, 13:] = False
    together = tiny.model(ids, attention).logits
    alone = tiny.model(ids[1:, :13]).logits
    torch.testing.assert_close(together[1, :13], alone[0], rtol=1e-4, atol=1e-4)


def test_the_loss_at_selected_positions_is_that_of_all_logits():
    model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)).double()
    ids, selected = torch.randint(0, 256, (3, 9)), torch.rand(3, 9) < 0.5
    nll = model(ids, selected=selected, targets=ids).nll
    plain = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten(), reduction="none")
    torch.testing.assert_close(nll, plain.view(3, 9)[selected])
    assert model(ids, selected=torch.zeros_like(selected), targets=ids).nll.shape == (0,)


def test_save_and_load(tmp_path, tiny):
    tiny.model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in tiny.model.state_dict().items())


def test_bad_folders_are_refused(tmp_path, tiny):
    with pytest.raises(UserError, match="expected 'tiny', 'tiny-mmada', a local folder"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    with pytest.raises(UserError, match="model_type 'other'"):
        load_model(str(tmp_path))
    tiny.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(UserError, match="missing weight blocks"):
        load_model(str(tmp_path))
