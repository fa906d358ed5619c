"""What cannot be converted is one sentence that says why, and nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import Mistakes, UserError
from stabledllm.models.conversion import convert as module
from stabledllm.models.conversion.convert import convert
from stabledllm.models.conversion.depth import evenly_spaced
from stabledllm.models.conversion.kinds import ARCHITECTURES, check_convertible
from stabledllm.models.conversion.options import ConversionOptions
from stabledllm.models.families.decoder_config import FULL
from tests.cli.runner import assert_refused, in_process
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_llada, write_llama, write_qwen2
from tests.models.families.cases import config_of


def refused(folder, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as error:
        convert(str(folder), folder.parent / "out", ConversionOptions(**options))
    assert "\n" not in str(error.value)
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "llama, qwen2, qwen3, found 'mamba'"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, "found 'gemma3_text'"),
        ({"model_type": None}, "expected model_type llama, qwen2, qwen3, found None"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, "architecture Qwen2ForCausalLM, found Qwen2ForTokenCl"),
        ({"auto_map": {"AutoModel": "own.Own"}}, "expected one of transformers' own models, found one with code"),
        ({"use_sliding_window": True, "sliding_window": 4}, "expected full attention in every layer, found a sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "every layer, found sliding_attention"),
        ({"layer_types": ["mamba", "full_attention"]}, "every layer, found mamba"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"found quantised ones \(gptq\); convert the model that"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act: expected silu, found 'gelu'"),
    ],
    ids=["mamba", "gemma", "none", "head", "code", "window", "some-windows", "mamba-layer", "gptq", "gelu"],
)
def test_models(tmp_path, keys, words):
    refused(write_qwen2(tmp_path / "a", config=keys), words)


def test_a_masked_diffusion_model_and_an_adapter(tmp_path):
    refused(write_llada(tmp_path / "a", config={"auto_map": None}), "expected model_type .*, found 'llada'")
    refused(write_a2d(tmp_path / "b"), "found 'a2d-qwen3'")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "c", "expected a whole model, found an adapter; stabledllm merge makes one of it")


def test_weights_and_tokenizer(tmp_path):
    folder = write_llama(tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "expected finite weights, found NaN or infinity in model.norm.weight")
    folder = write_llama(tmp_path / "c")
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {"num_hidden_layers": 3}))
    refused(folder, "expected the weights of its config, found missing weight model.layers.2")
    folder = write_llama(tmp_path / "b")
    (folder / "tokenizer.json").unlink()
    refused(folder, "expected a tokenizer in")


def test_options(tmp_path):
    folder = write_llama(tmp_path / "a")
    refused(folder, "expected --anneal-steps of at least 0, found -1", anneal_steps=-1)
    refused(folder, "expected --layers from 1 to the model's 2, found 3", layers=3)
    refused(folder, "expected --layers of at least 1, found 0", layers=0)
    refused(folder, "expected --mask-embedding kept, mean, found 'random'", mask_embedding="random")
    refused(folder, "which has nothing to keep", mask_embedding="kept", mask_token="new")
    refused(folder, "expected --dtype auto, float32, bfloat16, float16, found 'int8'", dtype="int8")
    with pytest.raises(Mistakes, match=r"2 mistakes; nothing was loaded or written:\n  1. convert: expected --anneal"):
        convert("nothing", tmp_path / "out", ConversionOptions(anneal_steps=-1, dtype="flaot32"))


def test_other_mathematics_would_be_noticed(tmp_path, monkeypatch):
    """The check that ends a conversion compares numbers: a wrong base of the rotations is refused."""
    keys = module._keys
    monkeypatch.setattr(module, "_keys", lambda *given: keys(*given) | {"rope_theta": 100.0})
    refused(write_llama(tmp_path / "a", std=0.3, config={"torch_dtype": "float32"}), "found a difference of")


def test_layers():
    assert evenly_spaced(30, 30) == list(range(30))
    assert evenly_spaced(30, 2) == [0, 29]
    assert evenly_spaced(5, 1) == [0]
    assert all(len(set(evenly_spaced(30, kept))) == kept for kept in range(1, 31))


def test_the_command(tmp_path):
    write_llama(tmp_path / "ar")
    told = in_process("convert", "ar", "--out", "mdm", "--layers", "1", "--anneal-steps", "4", cwd=tmp_path)
    assert told.returncode == 0, told.stderr[-2000:]
    assert "mask token: <|mask|> (id 260), a spare row of the embedding" in told.stdout
    assert told.stdout.splitlines()[-1] == "wrote mdm"
    keys = config_of(tmp_path / "mdm")
    assert (keys["anneal_steps"], keys["num_hidden_layers"]) == (4, 1)
    assert json.loads((tmp_path / "mdm" / "stabledllm_conversion.json").read_text())["original"] == "ar"
    assert_refused(in_process("convert", "ar", "--out", "mdm", cwd=tmp_path), "expected a new folder")
    assert_refused(in_process("convert", "nothing", "--out", "x", cwd=tmp_path), "a local folder or a hub's OWNER/NAME")
    assert_refused(in_process("convert", "tiny", "--out", "x", cwd=tmp_path), "found 'stabledllm_tiny'")
    # The model of a run, such as an autoregressive one that was trained here.
    (tmp_path / "run").mkdir()
    (tmp_path / "ar").rename(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"schema": "stabledllm/run/1", "status": "finished"}))
    (tmp_path / "run" / "model" / "stabledllm.json").write_text("{}")
    assert in_process("convert", "run", "--out", "of_run", cwd=tmp_path).returncode == 0
    assert_refused(in_process("convert", "mdm", "--out", "x", cwd=tmp_path), "found 'a2d-llama'")
    assert not (tmp_path / "x").exists()


def test_what_is_known_without_transformers_is_what_transformers_says():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert {kind: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind in ARCHITECTURES} == ARCHITECTURES
    check_convertible({"model_type": "qwen2", "layer_types": [FULL]}, "model 'x'")


@pytest.mark.parametrize(
    ("key", "value"),
    [("architectures", {"a": 1}), ("layer_types", FULL), ("layer_types", 5), ("quantization_config", "gptq")],
)
def test_a_key_of_another_form_is_one_sentence(key, value):
    with pytest.raises(UserError, match=rf"model 'x': expected an? (list|object) as {key}, found {value!r}\.$"):
        check_convertible({"model_type": "llama", key: value}, "model 'x'")
