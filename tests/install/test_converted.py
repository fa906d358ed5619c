"""dllm's stack, transformers 4, reads what ``stabledllm convert`` writes: the same logits to the last digit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.runner import ROOT
from tests.fakes.converted import ORIGINALS
from tests.install.environments import Environment
from tests.models.conversion.cases import converted, some_ids
from tests.models.conversion.test_fidelity import LLAMA3

pytestmark = pytest.mark.processes


@torch.no_grad()
def written(folder, original: str):
    """A converted model with what it gives here."""
    folder.mkdir()
    config = {"tie_word_embeddings": original != "qwen2"} | (LLAMA3 if original == "llama" else {})
    model, ids = converted(folder, original, config=config).model.eval(), some_ids()
    full = model.lm_head(model.hidden_states(ids))
    with model.causal():
        causal = model.lm_head(model.hidden_states(ids))
    save_file({"ids": ids, "causal": causal, "full": full}, folder / "expected.safetensors")
    return folder


def test_transformers_4_reads_what_is_written(tmp_path):
    folders = [written(tmp_path / name, name) for name in ORIGINALS]
    environment = Environment(tmp_path / "venv")
    environment.link("torch", "numpy", "safetensors")
    environment.fetch("transformers==4.57.1")  # dllm pins 4.57
    done = environment.run("python", ROOT / "tests/install/own_converted.py", *folders)
    assert done.returncode == 0, done.stdout + done.stderr
    differences = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert differences.keys() == {f"{name} {attention}" for name in ORIGINALS for attention in ("causal", "full")}
    assert all(float(value) < 1e-5 for value in differences.values()), differences
