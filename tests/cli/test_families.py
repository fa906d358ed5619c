"""The README's commands on small checkpoints in the hub's layouts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.runner import assert_refused, in_process
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_mmada
from tests.fakes.llada2 import write_llada2
from tests.models.families.cases import stored

pytestmark = pytest.mark.long

WRITERS = {
    "llada": write_llada, "dream": write_dream, "mmada": write_mmada, "llada-moe": write_llada_moe, "a2d": write_a2d,
    "llada2": write_llada2, "sdar": write_sdar, "fast-dllm": write_fast_dllm,
}  # fmt: skip
SMALL = [
    "batch=4", "steps=2", "save_every=1", "log_every=1", "data.train_rows=12", "data.validation_rows=4",
    "data.test_rows=2", "data.pad_response_to=8", "decoding.length=8", "decoding.steps=4", "decoding.block=8",
    "ppots.rows=4", "ppots.rates=4", "ppots.masks=2", "ppots.starts=2",
]  # fmt: skip
LAB = [
    "rows=6", "rates=4", "masks=2", "steps=4", "probe.rows=4", "probe.rates=4", "probe.masks=2", "probe.starts=2",
    "grad.rows=4", "grad.view_rows=4", "grad.rates=2", "grad.steps=4", "data.train_rows=12", "forwards=8",
]  # fmt: skip


def run(*arguments: str, cwd):
    result = in_process(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


# Those that are trained in blocks walk in test_walk_of_blocks.py.
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("sdar", "fast-dllm")])
def test_train_resume_generate_evaluate(tmp_path, name):
    hub = WRITERS[name](tmp_path / "hub", shards=2)
    train = ["train", "sft-synthetic", *SMALL, "model=hub", "method=ppots+mirror", "out=run"]
    train += ["block_size=8"] if name == "llada2" else []
    run(*train, cwd=tmp_path)
    model = tmp_path / "run" / "model"
    after, before = stored(model), stored(hub)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[key], before[key]) for key in before)
    read = json.loads((hub / "config.json").read_text())
    written = json.loads((model / "config.json").read_text())
    assert read == {key: written[key] for key in read}
    # As if killed after the first step: the second is the same again.
    (tmp_path / "run" / "run.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    shutil.rmtree(model)
    assert "resuming from run/checkpoint-1" in run(*train, cwd=tmp_path)
    again = load_file(model / "model.safetensors")
    assert all(torch.equal(after[key], again[key]) for key in after)
    text = run("generate", "1+1", "--model", "run/model", "--length", "8", "--steps", "4", cwd=tmp_path)
    assert text.startswith("1+1\n")
    evaluate = ["eval", "--model", "run/model", "--rows", "3", "--length", "8", "--steps", "4", "--dtype", "bfloat16"]
    run(*evaluate, "--family", name, "--attention", "eager", "--out", "eval", cwd=tmp_path)
    record = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert record["metrics"]["validation_nll"]["n"] == 3
    assert record["config"]["dtype"] == "bfloat16"


def test_decompose_with_the_gradient(tmp_path):
    write_dream(tmp_path / "hub")
    methods = ["--methods", "standard,ppots+mirror,lowdisc+ppots-head+fixedcount"]
    run("decompose", "--model", "hub", "--out", "out", "--gradient", *methods, *LAB, cwd=tmp_path)
    record = json.loads((tmp_path / "out" / "decomposition.json").read_text())
    assert record["model"] == "hub"
    assert record["gradient"]


def test_models_in_blocks_are_measured(tmp_path):
    write_sdar(tmp_path / "hub")
    methods = ["--methods", "standard,ppots,mirror,lowdisc+fixedcount"]
    told = run("recommend", "--model", "hub", "--out", "out", *methods, *LAB, cwd=tmp_path)
    record = json.loads((tmp_path / "out" / "decomposition.json").read_text())
    assert record["blocks"]["block_size"] == 4
    assert [m["method"] for m in record["methods"]] == ["standard", "ppots", "mirror", "lowdisc+fixedcount"]
    means = [m["mean"]["value"] for m in record["methods"]]
    assert min(means) > 0.5 * max(means) > 0, "all estimate one loss"
    assert "Mask-rate noise in blocks" in told
    of_gradient = [m["gradient"] for m in record["methods"]]
    assert all(part["measured_variance"]["value"] > 0 and part["predicted_variance"] is None for part in of_gradient)
    assert record["gradient"]["mask_pattern"]["value"] > 0
    assert record["blocks"]["gradient"]["own_t"]["unit"] == "(nats/param)²"
    assert "measured on drawn steps" in " ".join(told.split())
    assert "block_size: 4\ndecoding: {block: 4}" in told
    run("report", "out", cwd=tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    for part in (record["blocks"], record["blocks"]["gradient"]):
        assert part["sentence"].split(":")[0] in page


def test_a_density_fitted_to_gradients_is_refused_in_blocks(tmp_path):
    write_sdar(tmp_path / "hub")
    refused = in_process("decompose", "--model", "hub", "--methods", "ppots-head", *LAB[:1], cwd=tmp_path)
    assert_refused(refused, "a density fitted to gradients and block_size contradict")


def test_refusals_reach_the_user_as_one_sentence(tmp_path):
    write_llada(tmp_path / "hub", shards=2)
    (tmp_path / "hub" / "model-00001-of-00002.safetensors").unlink()
    for arguments, words in (
        (["generate", "x", "--model", "hub"], ("shard model-00001-of-00002",)),
        (["generate", "x", "--model", "hub", "--dtype", "int8"], ("key 'dtype'", "'int8'")),
        (["decompose", "--model", "hub", "family=dream"], ("expected family 'dream'",)),
        (["eval", "--model", "hub", "--attention", "fast"], ("expected one of sdpa",)),
        (["train", "sft-synthetic", "model=hub", "famly=llada"], ("did you mean 'family'",)),
    ):
        assert_refused(in_process(*arguments, cwd=tmp_path), *words)
