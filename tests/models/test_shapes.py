"""Parameter counts from a shape: equal to the models' own, built without memory on the meta device."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.models.shapes import PUBLISHED, read_shape, shape_of
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.fakes.converted import write_a2d

SMALL = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 40,
}  # fmt: skip


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("config", "model"),
    [
        (LlamaConfig(**SMALL), LlamaForCausalLM),
        (LlamaConfig(**SMALL, head_dim=8), LlamaForCausalLM),
        (Qwen2Config(**SMALL), Qwen2ForCausalLM),
        (Qwen3Config(**SMALL, head_dim=10), Qwen3ForCausalLM),
    ],
)
def test_counts_of_small_models(config, model, tied):
    config.tie_word_embeddings = tied
    shape = read_shape(json.loads(config.to_json_string(use_diff=False)), "here")
    assert shape.parameters == count(model(config))
    assert shape.causal


def test_the_tiny_model():
    assert shape_of("tiny").parameters == count(TinyMDM(TinyMDMConfig()))
    assert not shape_of("tiny").causal


@pytest.mark.parametrize(
    ("name", "config", "model", "billions"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", Qwen2Config(
            vocab_size=152064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
            intermediate_size=18944, tie_word_embeddings=False), Qwen2ForCausalLM, 7.62),
        ("Qwen/Qwen3-8B-Base", Qwen3Config(
            vocab_size=151936, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=12288, head_dim=128, tie_word_embeddings=False), Qwen3ForCausalLM, 8.19),
        ("meta-llama/Llama-3.1-8B-Instruct", LlamaConfig(
            vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=14336, tie_word_embeddings=False), LlamaForCausalLM, 8.03),
        # LLaDA's blocks are Llama's: four square projections, a gated MLP, two norms, no biases.
        ("GSAI-ML/LLaDA-8B-Instruct", LlamaConfig(
            vocab_size=126464, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
            intermediate_size=12288, tie_word_embeddings=False), LlamaForCausalLM, 8.02),
    ],
)  # fmt: skip
def test_counts_of_the_published_models(name, config, model, billions):
    with torch.device("meta"):
        real = count(model(config))
    assert PUBLISHED[name].parameters == real
    assert round(real / 1e9, 2) == billions


def test_llada_8b_written_out():
    layer = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    assert PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"].parameters == 32 * layer + 2 * 126464 * 4096 + 4096 == 8_015_581_184
    assert PUBLISHED["Gen-Verse/MMaDA-8B-Base"].parameters == 8_015_581_184 + 2 * (134656 - 126464) * 4096
    assert PUBLISHED["Dream-org/Dream-v0-Instruct-7B"].parameters == PUBLISHED["Qwen/Qwen2.5-7B"].parameters


def test_a_folder_in_lladas_own_layout(tmp_path):
    config = {
        "model_type": "llada", "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": None, "mlp_hidden_size": 48,
        "vocab_size": 100, "weight_tying": False, "include_qkv_bias": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path)).parameters == 2 * (4 * 32**2 + 3 * 32 * 48 + 64) + 2 * 100 * 32 + 32


@pytest.mark.parametrize(
    ("more", "rows"), [({"embedding_size": 128}, 128), ({"model_type": "mmada", "new_vocab_size": 150}, 150)]
)
def test_an_embedding_larger_than_the_vocabulary(more, rows):
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 16, "vocab_size": 100}
    assert read_shape({"model_type": "llada"} | sizes | more, "here").vocabulary == rows


@pytest.mark.parametrize("original", ["llama", "qwen2", "qwen3"])
def test_a_converted_model_has_its_originals_shape(tmp_path, original):
    folder = write_a2d(tmp_path, original)
    shape = shape_of(str(folder))
    assert shape.parameters == sum(p.numel() for p in load_model(str(folder)).model.parameters())
    assert not shape.causal


def test_an_adapters_folder_has_its_bases_shape(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Base"}))
    assert shape_of(str(tmp_path)) == PUBLISHED["GSAI-ML/LLaDA-8B-Base"]


def test_lora_parameters_are_those_of_two_thin_matrices_each():
    shape = PUBLISHED["meta-llama/Llama-3.1-8B"]
    assert shape.lora_parameters(4, ["q_proj", "v_proj"]) == 32 * 4 * ((4096 + 4096) + (4096 + 1024))
    tiny = shape_of("tiny")
    assert tiny.lora_parameters(2, "all-linear") == 4 * 2 * ((128 + 384) + (128 + 128) + (128 + 768) + (384 + 128))
    every = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    assert shape.lora_parameters(16, "all-linear") == 32 * 16 * every


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2"}, ["expected model_type in", "found 'gpt2'"]),
        ({}, ["found None"]),
        ({"model_type": "llama", "hidden_size": 4}, ["expected the key 'num_hidden_layers'"]),
        ({"model_type": "llada", "d_model": 4}, ["expected the key 'n_layers' of a llada"]),
    ],
)
def test_a_config_that_is_none(config, words):
    with pytest.raises(UserError) as refused:
        read_shape(config, "here/config.json")
    for word in ["here/config.json", *words]:
        assert word in str(refused.value), refused.value


def test_an_unknown_model():
    with pytest.raises(UserError, match="did you mean 'GSAI-ML/LLaDA-8B-Instruct'"):
        shape_of("GSAI-ML/LLaDA-8B-Instrct")
