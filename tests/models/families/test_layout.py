"""What is saved is what was published: names, shards, config keys and everything beside the weights."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PretrainedConfig

from stabledllm.models.families.dream import DreamConfig, DreamModel
from stabledllm.models.families.llada import LLaDAConfig, LLaDAModelLM
from stabledllm.models.loading import load_model
from tests.models.families.cases import CASES, config_of, load, random_ids, stored


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_survives_loading_and_saving(tmp_path, name, shards):
    folder = CASES[name].checkpoint(tmp_path / "hub", shards=shards)
    loaded = load_model(str(folder))
    loaded.save(tmp_path / "saved")
    before, after = stored(folder), stored(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    read, written = config_of(folder), config_of(tmp_path / "saved")
    assert read == {key: written.get(key) for key in read}
    assert written.keys() - read.keys() <= {"dtype"}
    beside = {f.name: f.read_bytes() for f in folder.iterdir() if "model" not in f.name and f.name != "config.json"}
    assert beside
    assert all((tmp_path / "saved" / file).read_bytes() == content for file, content in beside.items())
    again = load_model(str(tmp_path / "saved"))
    # Weights that lie elsewhere in memory take other kernels on some machines: the last digit may differ.
    torch.testing.assert_close(again.model(random_ids(1, 9)).logits, loaded.model(random_ids(1, 9)).logits)


@pytest.mark.parametrize("name", ["llada", "llada-tied", "dream"])
def test_large_models_are_saved_in_shards_with_an_index(tmp_path, name):
    folder = CASES[name].checkpoint(tmp_path / "hub")
    model = load(folder)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    before, after = stored(folder), stored(tmp_path / "saved")
    assert set(index["weight_map"]) == before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_changed_weights_are_saved_and_other_precision_is_loaded(tmp_path):
    folder = CASES["dream"].checkpoint(tmp_path / "hub")
    model = load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(tmp_path / "saved")
    after = stored(tmp_path / "saved")["lm_head.weight"]
    assert torch.equal(after, stored(folder)["lm_head.weight"].bfloat16() * 2)
    assert config_of(tmp_path / "saved")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (LLaDAModelLM, LLaDAConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=24)),
        (
            DreamModel,
            DreamConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=24,
            ),
        ),
    ],
)
def test_a_new_model_is_written_with_every_key_that_the_original_code_reads(tmp_path, kind, config):
    config.mask_token_id = 39
    model = kind(config)
    model.save_pretrained(tmp_path)
    written = config_of(tmp_path)
    assert written["architectures"] == [kind.__name__]
    assert written["mask_token_id"] == 39
    for key, allowed in kind.config_class.required.items():
        assert written[key] == allowed[0], key
    assert type(config).from_pretrained(tmp_path).rope_theta == config.rope_theta
    assert isinstance(config, PretrainedConfig)


def test_tied_weights_are_one(tmp_path):
    model = load(CASES["llada-tied"].checkpoint(tmp_path))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not any("ff_out" in name and "blocks" not in name for name in stored(tmp_path))
