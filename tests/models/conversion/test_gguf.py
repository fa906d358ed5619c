"""Models in llama.cpp's files are converted like any other."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.models.conversion import gguf_file
from stabledllm.models.conversion.convert import convert
from stabledllm.models.loading import load_model
from tests.fakes.converted import add_mask
from tests.fakes.gguf_files import write_gguf
from tests.fakes.hub_models import write_llama
from tests.models.families.cases import stored

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the extra gguf is not installed")
ROWS = 256 + 5 + 1
"""Bytes, special tokens and one merged token: no spare row."""


def llama(folder):
    write_llama(folder, std=0.3, config={"vocab_size": ROWS, "torch_dtype": "float32"})
    add_mask(folder, "<empty_output>")
    return folder


@needs_gguf
@torch.no_grad()
def test_a_gguf_file_gives_the_model_that_it_was_made_from(tmp_path):
    file = write_gguf(llama(tmp_path / "original"), tmp_path / "small.gguf")
    (tmp_path / "out").mkdir()
    record = convert(str(file), tmp_path / "out")
    assert record["largest_difference"] == 0
    assert record["mask"] == {"name": "<empty_output>", "id": 260, "kind": "special"}
    before, after = stored(tmp_path / "original"), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = load_model(str(tmp_path / "out"))
    assert (loaded.mask_id, loaded.pad_id, loaded.eos_id) == (260, 257, 257)
    assert loaded.tokenizer.encode("cab") == [99, ROWS - 1]
    assert loaded.tokenizer.decode([99, ROWS - 1, 257]) == "cab"


@needs_gguf
@pytest.mark.parametrize(
    ("architecture", "more", "words"),
    [
        ("mamba", {}, "expected a GGUF file of llama, qwen2, qwen3, found architecture 'mamba'"),
        ("gemma3", {}, "found architecture 'gemma3'"),
        ("llama", {"llama.expert_count": 8}, "expected a model without experts, found 8 experts"),
        ("llama", {"llama.attention.sliding_window": 512}, "expected full attention in every layer, found a sliding"),
        ("llama", {"split.count": 3}, "expected a whole model, found one of 3 parts"),
    ],
    ids=["mamba", "gemma", "experts", "window", "parts"],
)
def test_a_gguf_of_another_kind_is_one_sentence(tmp_path, architecture, more, words):
    file = write_gguf(llama(tmp_path / "a"), tmp_path / "x.gguf", architecture=architecture, more=more)
    with pytest.raises(UserError, match=words) as error:
        convert(str(file), tmp_path / "out")
    assert "\n" not in str(error.value)


@needs_gguf
def test_a_broken_file(tmp_path):
    file = write_gguf(llama(tmp_path / "a"), tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UserError, match="expected a GGUF file, found a broken one"):
        convert(str(file), tmp_path / "out")


def test_no_gguf_file_or_no_package(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected a GGUF file, found no such file"):
        convert(str(tmp_path / "none.gguf"), tmp_path / "out")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(UserError, match="found one that does not begin with GGUF"):
        convert(str(tmp_path / "text.gguf"), tmp_path / "out")
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0")
    monkeypatch.setattr(gguf_file, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"found it not installed \(pip install 'stabledllm\[gguf\]'\)"):
        convert(str(tmp_path / "x.gguf"), tmp_path / "out")
