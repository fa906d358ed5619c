"""The near-ARM study: its recipes are in order, its checkpoint loads, and its page holds what results.json holds."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from stabledllm.config import load_recipe
from stabledllm.models.loading import load_model
from tests.cli.runner import ROOT

FOLDER = ROOT / "studies" / "near_arm"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"near_arm_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def checkpoint(monkeypatch):
    found = module("checkpoint")
    monkeypatch.setitem(sys.modules, "checkpoint", found)
    return found


def test_recipes():
    assert load_recipe(str(FOLDER / "recipes" / "pretrain.yaml")).method == "autoregressive"
    sft = load_recipe(str(FOLDER / "recipes" / "arm.yaml"))
    masked = load_recipe(str(FOLDER.parent / "equal_compute" / "recipes" / "tiny.yaml"))
    assert sft.seeds == masked.seeds
    for key in ("batch", "steps", "trainer"):
        assert getattr(sft.base, key) == getattr(masked.base, key), f"both kinds train alike: {key}"
    assert sft.base.data.train_rows == masked.base.data.train_rows


def test_the_checkpoint_is_of_the_shipped_models_size(tmp_path, checkpoint):
    checkpoint.write(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.autoregressive
    sizes = [sum(p.numel() for p in m.model.parameters()) for m in (loaded, load_model("tiny"))]
    assert sizes[0] == sizes[1]
    ids = loaded.tokenizer.encode("7+5=12\n")
    assert len(ids) == 7
    assert loaded.tokenizer.decode(ids) == "7+5=12\n"


def test_the_pages_table_is_that_of_the_results(checkpoint):
    results = json.loads((FOLDER / "results.json").read_text())
    assert module("study").table(results) in (FOLDER / "README.md").read_text()
