"""A model's folder loads or is refused in one sentence, whatever is in its files; and at once."""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import UserError
from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.image_choices import image_choices
from stabledllm.models.loading import load_model
from stabledllm.models.shapes import shape_of
from tests.models.damage import WRITE, damage_bytes, damage_json

SECONDS = 20
SEEDS = 90


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / name) for name, write in WRITE.items()}


@pytest.fixture
def copy(whole, tmp_path):
    def made(name: str) -> Path:
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(whole[name], folder))

    return made


def load(name) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_model(str(name))


def refused(name, match: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=match) as error:
        load(name)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < SECONDS


def change(folder: Path, file: str = "config.json", **keys) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def weights_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.safetensors"))))


@pytest.mark.parametrize("part", range(6))
def test_any_damage_is_told_in_a_sentence(whole, tmp_path, part):
    """A property: each seed damages one file of one family, also of a new model's pattern."""
    outcomes = []
    for seed in range(part * SEEDS // 6, (part + 1) * SEEDS // 6):
        rng = random.Random(seed)
        name = rng.choice(sorted(WRITE))
        folder = tmp_path / str(seed)
        shutil.copytree(whole[name], folder)
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".txt")]
        file = rng.choice([*files, *[folder / "config.json"] * 3])
        done = (damage_json if file.suffix == ".json" else damage_bytes)(file, seed)
        started = time.monotonic()
        try:
            load(f"new:{folder}" if rng.random() < 0.2 else folder)
            outcomes.append("loads")
        except UserError as error:
            outcomes.append("refused" if "\n" not in str(error) else f"seed {seed}, {done}: {error}")
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}, {done}: {error!r}") from error
        assert time.monotonic() - started < SECONDS, f"seed {seed}: {done}"
    assert set(outcomes) == {"loads", "refused"}


@pytest.mark.parametrize("name", WRITE)
def test_weights_that_are_not_whole(copy, name):
    folder = copy(name)
    content = weights_file(folder).read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], content[:5], b""):
        weights_file(folder).write_bytes(broken)
        refused(folder, "expected safetensors in model.*, found a broken file")
    weights_file(folder).unlink()
    refused(
        folder, "expected the shard|expected model.safetensors or model.safetensors.index.json in .*, found neither"
    )


@pytest.mark.parametrize("name", [name for name in WRITE if name != "llada-sharded"])
def test_weights_that_are_others(copy, name):
    folder = copy(name)
    file = weights_file(folder)
    stored = load_file(file)
    inner = [key for key in sorted(stored) if stored[key].dim() == 2 and "embed" not in key and "wte" not in key]
    key = next(key for key in inner if "0." in key)

    def save(changed: dict) -> None:
        save_file({k: v.clone() for k, v in changed.items()}, file, metadata={"format": "pt"})

    save({k: v for k, v in stored.items() if k != key})
    refused(folder, f"missing weight .*{key.rpartition('.')[0].rpartition('.')[2]}|missing weight")
    save(stored | {key: stored[key][:-1]})
    refused(folder, r"expected weight .* of shape \[.*\] from its config, found \[")
    more = key.replace("0.", "7.", 1)
    save(stored | {more: stored[key]})
    refused(folder, "found unexpected weight")
    for value in (float("nan"), float("inf"), -float("inf")):
        damaged = stored[key].clone()
        damaged.view(-1)[3] = value
        save(stored | {key: damaged})
        refused(folder, r"expected finite weights, found NaN or infinity in .*\(float32\)")


LAYERS = {"n_layers", "num_hidden_layers"}


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("value", [10**6, 10**9, 10**18, -1, 2.5, "2", True, [2], None])
def test_layers_that_cannot_be(copy, name, value):
    folder = copy(name)
    keys = json.loads((folder / "config.json").read_text())
    change(folder, **dict.fromkeys(LAYERS & keys.keys(), value))
    for pattern in (str(folder), f"new:{folder}"):
        refused(pattern, "n_layers|num_hidden_layers|expected one that transformers can load|missing weight|unexpected")


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("tiny", {"vocab_size": 100}, "vocab_size of at least 264, found 100|shape"),
        ("tiny", {"mask_token_id": 65}, "expected mask_token_id 256 of its byte tokenizer, found 65"),
        ("tiny", {"mask_token_id": 256.5}, "mask_token_id: expected a whole number of at least 0, found 256.5"),
        ("tiny", {"num_attention_heads": 3}, "divide the width 8 evenly, found 3"),
        ("tiny", {"num_attention_heads": 8}, "a head, which turns pairs of numbers, 1 evenly, found 2"),
        ("tiny", {"rms_norm_eps": -1}, r"rms_norm_eps: expected a number in \(0, 1\), found -1"),
        ("llada", {"rope_theta": -10000.0}, "rope_theta: expected a number above 0"),
        ("llada", {"mask_token_id": 261.5}, "mask_token_id: expected a whole number"),
        ("mmada", {"n_kv_heads": 0}, "n_kv_heads: expected a whole number of at least 1, found 0"),
        ("dream", {"hidden_size": -32}, "hidden_size: expected a whole number of at least 1, found -32"),
        ("llada-moe", {"num_experts_per_tok": 99}, "expected a model that a short row goes through|num_experts"),
        ("llada-moe", {"moe_layer_freq": [1]}, "expected the config of a"),
        ("bert", {"mask_token_id": 2.5}, "mask_token_id to be a token below the embedding's 64 rows, found 2.5"),
        ("bert", {"mask_token_id": -1}, "mask_token_id to be a token .*, found -1"),
        ("bert", {"hidden_dropout_prob": 3}, r"hidden_dropout_prob: expected a number in \[0, 1\), found 3"),
        ("qwen2", {"attention_dropout": -1}, "attention_dropout: expected a number"),
        ("qwen2", {"hidden_act": "nothing"}, "expected one that transformers can load, found: .*nothing"),
        ("qwen2", {"intermediate_size": 10**9}, "of shape|numbers of its config"),
        ("qwen2", {"transformers_weights": "../w.safetensors"}, "expected no transformers_weights"),
        ("llama", {"architectures": "Llama"}, "architectures: expected a list, found 'Llama'"),
        ("llama", {"model_type": 5}, "model_type: expected a name, found 5"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(copy, name, keys, words):
    refused(change(copy(name), **keys), words)


def test_a_config_that_is_no_object(copy):
    folder = copy("llada")
    deep = "[" * 40 + "]" * 40
    digits = "9" * 5000
    for content, words in (
        (b"", "expected JSON, found something broken"),
        (b"{", "expected JSON"),
        (b"\xff\xfe{}", "expected JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"5", "expected a JSON object, found int"),
        (b"[" * 100_000, "expected JSON"),
        (f'{{"a": {deep}}}'.encode(), "nested at most 30 deep"),
        (f'{{"n_layers": {digits}}}'.encode(), "expected JSON|at most"),
    ):
        (folder / "config.json").write_bytes(content)
        refused(folder, words)


@pytest.mark.parametrize("shard", ["/etc/passwd", "../model.safetensors", "a/b.safetensors", "..", "C:\\x", 5, None])
def test_shards_outside_of_the_folder(copy, shard):
    folder = copy("llada-sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][min(index["weight_map"])] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "expected a file beside model.safetensors.index.json for weight")


def test_links_into_the_hubs_cache_are_followed(copy, tmp_path):
    """The cache keeps files as blobs elsewhere, and snapshots of links to them."""
    folder = copy("llada-sharded")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    load(folder)


def test_named_tokens_that_no_file_has(copy):
    for key in ("bos_token", "eos_token", "mask_token"):
        folder = change(copy("llada"), "tokenizer_config.json", **{key: "<|nowhere|>"})
        refused(folder, rf"{key} in the vocabulary .*, found no '<\|nowhere\|>' there|token ids below|mask token")


@pytest.fixture
def adapter(copy, tmp_path):
    base = copy("llada")
    add_lora(load_model(str(base)), LoRAOptions(rank=2)).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_adapters(adapter, tmp_path):
    config, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    good, content = json.loads(config.read_text()), file.read_bytes()
    load(adapter)

    def tried(words: str, **keys) -> None:
        config.write_text(json.dumps(good | keys))
        refused(adapter, words)

    other = shutil.copytree(adapter, tmp_path / "other")
    for base in (adapter, other):  # itself, and one of two that name each other
        tried("expected a model, found the adapter", base_model_name_or_path=str(base))
        for reads in (image_choices, shape_of):
            with pytest.raises(UserError, match="found the adapter"):
                reads(str(adapter))
    tried("expected a model's name, found 5", base_model_name_or_path=5)
    tried("expected a base model .*, found none", base_model_name_or_path=None)
    for rank in (0, -1, 10**9, 2.5, "2", True):
        tried("expected a rank of its weights|expected the config of an adapter", r=rank)
    for alpha in (0, -1, True, "2", float("nan"), float("inf")):
        tried("expected lora_alpha above 0|expected the config of an adapter", lora_alpha=alpha)
    tried(r"expected lora_dropout in \[0, 1\)", lora_dropout=3)
    tried("expected one that fits|expected the weights of its config", r=3)
    tried("expected the config of an adapter|fits its base", peft_type="NOTHING")
    config.write_text("[1]")
    refused(adapter, "expected a JSON object, found list")
    config.write_text(json.dumps(good))
    file.write_bytes(content[: len(content) // 2])
    refused(adapter, "expected safetensors in adapter_model.safetensors, found a broken file")
    file.write_bytes(content)
    weights = load_file(file)
    name = min(weights)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, file, metadata={"format": "pt"})
    refused(adapter, r"adapter .*: expected finite weights, found NaN or infinity in .*lora_")


def test_a_new_model_larger_than_memory(copy):
    refused(f"new:{change(copy('llada'), d_model=2**20, mlp_hidden_size=2**24)}", "that fits the .* GiB of memory")


def test_image_choices_of_a_wrong_kind(copy):
    for key, value in (("num_vq_tokens", "a"), ("image_side", 2.5), ("image_tokenizer", 5), ("codebook_size", [1])):
        with pytest.raises(UserError, match=f"{key}: expected a"):
            image_choices(str(change(copy("mmada"), **{key: value})))
