"""Everything that is wrong with a checkpoint is one sentence that names it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import UserError
from stabledllm.models.families import attention
from stabledllm.models.families.dream import DreamConfig
from stabledllm.models.families.llada import LLaDAConfig
from stabledllm.models.loading import load_model
from tests.fakes.hub_models import LLADA_SPECIAL, write_dream, write_llada, write_mmada, write_qwen2, write_tokenizer


def refused(folder, match: str, **kwargs) -> None:
    with pytest.raises(UserError, match=match) as error:
        load_model(str(folder), **kwargs)
    assert "\n" not in str(error.value)


def change(folder, **weights) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file) | {name.replace("__", "."): value for name, value in weights.items()}
    save_file({name: value for name, value in stored.items() if value is not None}, file)


def test_weights(tmp_path):
    name = "model__transformer__blocks__1__q_proj__weight"
    change(write_llada(tmp_path / "a"), **{name: None})
    refused(tmp_path / "a", r"missing weight model\.transformer\.blocks\.1\.q_proj\.weight\.$")
    change(write_llada(tmp_path / "b"), model__transformer__extra__weight=torch.zeros(1))
    refused(tmp_path / "b", r"unexpected weight model\.transformer\.extra\.weight")
    change(write_llada(tmp_path / "c"), **{name: torch.zeros(32, 16)})
    refused(tmp_path / "c", r"q_proj\.weight of shape \[32, 32\] from its config, found \[32, 16\]")
    change(write_dream(tmp_path / "d"), model__layers__0__self_attn__k_proj__bias=None)
    refused(tmp_path / "d", r"missing weight model\.layers\.0\.self_attn\.k_proj\.bias")


def test_files(tmp_path):
    folder = write_llada(tmp_path / "a", shards=3)
    (folder / "model-00002-of-00003.safetensors").rename(folder / "away")
    refused(folder, "shard model-00002-of-00003.safetensors that model.safetensors.index.json names")
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"half")
    refused(folder, "safetensors in model-00002-of-00003.safetensors, found a broken file")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "found neither")
    folder = write_llada(tmp_path / "b")
    (folder / "tokenizer.json").unlink()
    refused(folder, "expected a tokenizer in")
    (folder / "config.json").write_text("[1]")
    refused(folder, "expected a JSON object, found list")


def test_the_hub_is_not_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("nobody/nothing", "copy in the hub's cache, found neither, and HF_HUB_OFFLINE=0 allows the download")
    refused("no/such/folder", "expected 'tiny', 'tiny-mmada', a local folder or a hub's OWNER/NAME")


def test_families(tmp_path):
    refused(write_dream(tmp_path / "a"), "expected family 'llada', found one of 'dream'", family="llada")
    refused(tmp_path / "a", "family: unknown 'lada'.*did you mean 'llada'", family="lada")
    refused(write_llada(tmp_path / "b"), "expected family 'dream', found one of 'llada'", family="dream")
    refused(tmp_path / "b", "expected trust_remote_code=true", family="mlm")
    stacked = {"model_type": "llada2_moe_veomni"}
    refused(write_mmada(tmp_path / "c", config=stacked), "LLaDA 2 .*, which is not implemented")
    refused(write_qwen2(tmp_path / "d", config={"model_type": "x", "architectures": ["XModel"]}), "'x', architecture")
    refused("tiny", "expected family 'auto' for the reference model", family="llada")


@pytest.mark.parametrize("key", sorted(set(LLaDAConfig.required)))
def test_llada_keys_that_would_change_the_mathematics(tmp_path, key):
    write_llada(tmp_path, config={key: "other"})
    refused(tmp_path, f"config.json: {key}: expected .*, found 'other'")


@pytest.mark.parametrize("key", sorted(set(DreamConfig.required)))
def test_dream_keys_that_would_change_the_mathematics(tmp_path, key):
    write_dream(tmp_path, config={key: "other"})
    refused(tmp_path, f"config.json: {key}: expected .*, found 'other'")


def test_heads_that_do_not_divide(tmp_path):
    folder = write_llada(tmp_path)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {"n_kv_heads": 3}))
    refused(folder, "attention heads 4 evenly, found 3")


def test_tokens(tmp_path):
    folder = write_llada(tmp_path / "a", config={"mask_token_id": None})
    refused(folder, "expected mask_token_id in config.json or a mask token in the tokenizer, found neither")
    refused(write_llada(tmp_path / "b", config={"mask_token_id": 300}), "below the embedding's 272 rows, found 300")
    refused(write_dream(tmp_path / "c", config={"mask_token_id": 259}), "tokenizer's mask token 260 .*, found 259")
    small = {"vocab_size": 261, "embedding_size": 261, "mask_token_id": 260}
    refused(write_llada(tmp_path / "d", config=small), "below the embedding's 261 rows, found id 261 in the tokenizer")
    refused(
        write_llada(tmp_path / "e"), "end_token: expected a token of the model .*, found '<end>'", end_token="<end>"
    )
    write_tokenizer(write_llada(tmp_path / "f"), LLADA_SPECIAL, {}, None)
    with pytest.warns(UserWarning, match="no chat template"):
        refused(tmp_path / "f", "expected an end token in the tokenizer, found none; set end_token")


def test_attention_back_ends(tmp_path, monkeypatch):
    folder = write_llada(tmp_path)
    refused(folder, "expected one of sdpa, eager, flash_attention_2, flex_attention, found 'fast'", attention="fast")
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    refused(folder, "expected the package flash-attn .*, found it not installed", attention="flash_attention_2")


def test_a_model_with_code_of_its_own_is_refused_unless_it_is_trusted(tmp_path):
    own = {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}, "architectures": ["Own"]}
    folder = write_llada(tmp_path, config=own)
    refused(folder, "expected trust_remote_code=true for a model that comes with code of its own", family="mlm")
