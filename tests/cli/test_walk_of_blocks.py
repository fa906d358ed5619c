"""The walk over a checkpoint in each published layout of blocks, command by command as on docs/blocks.md.

New weights of its shape, what is measured of its noise, a density, training all weights and adapters, kill and resume,
merging, decoding and evaluation.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.cli.runner import in_process
from tests.cli.test_families import LAB, SMALL, WRITERS
from tests.models.families.cases import config_of, stored

pytestmark = pytest.mark.long

TRAIN = ["train", "sft-synthetic", *SMALL, "decoding.length=32", "decoding.steps=8", "data.test_rows=1"]
BLOCK = {"sdar": 4, "fast-dllm": 8, "llada2": 32}


def run(*arguments: str, cwd) -> str:
    result = in_process(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCK)
def test_the_walk(tmp_path, name):
    hub, own = WRITERS[name](tmp_path / "hub", shards=2), f"decoding.block={BLOCK[name]}"
    run(*TRAIN, own, "model=new:hub", "init_seed=3", "out=new", cwd=tmp_path)
    first = stored(tmp_path / "new" / "model")
    assert first.keys() == stored(hub).keys(), "from nothing, by the original's names"

    lab = [part for part in LAB if not part.startswith("grad.")]
    run("decompose", "--model", "new", "--out", "noise", "--methods", "standard,lowdisc+fixedcount", *lab, cwd=tmp_path)
    noise = json.loads((tmp_path / "noise" / "decomposition.json").read_text())
    assert noise["blocks"]["block_size"] == BLOCK[name]

    probe = [part for part in SMALL if part.startswith("ppots.")]
    run("fit", "--model", "new", "--out", "density", "data.train_rows=12", "method=lowdisc+ppots", *probe, cwd=tmp_path)
    density = json.loads((tmp_path / "density" / "p_of_t.json").read_text())
    assert density["config"]["block_size"] == BLOCK[name]

    tuned = [*TRAIN, own, "model=hub", "method=lowdisc+ppots", "p_of_t=density/p_of_t.json"]
    run(*tuned, "out=whole", cwd=tmp_path)
    whole, before = stored(tmp_path / "whole" / "model"), stored(hub)
    assert whole.keys() == before.keys()
    assert any(not torch.equal(whole[key], before[key]) for key in before)
    read, written = config_of(hub), config_of(tmp_path / "whole" / "model")
    assert read == {key: written[key] for key in read}

    adapters = [*TRAIN, own, "model=whole/model", "lora.rank=4", "trainer.learning_rate=0.01", "out=lora"]
    run(*adapters, cwd=tmp_path)
    trained = stored(tmp_path / "lora" / "model")
    if name == "llada2":
        assert any("experts.3.up_proj.lora_B" in key for key in trained), "every expert has its own"
    (tmp_path / "lora" / "run.json").unlink()
    shutil.rmtree(tmp_path / "lora" / "checkpoint-2")
    shutil.rmtree(tmp_path / "lora" / "model")
    assert "resuming from lora/checkpoint-1" in run(*adapters, cwd=tmp_path)
    again = stored(tmp_path / "lora" / "model")
    assert all(torch.equal(trained[key], again[key]) for key in trained)

    run("merge", "lora/model", "--out", "merged", cwd=tmp_path)
    merged = stored(tmp_path / "merged")
    assert merged.keys() == whole.keys(), "merged in the published names"
    assert any(not torch.equal(merged[key], whole[key]) for key in whole)

    asked = ["--length", "32", "--steps", "8"]
    assert run("generate", "1+1", "--model", "merged", *asked, "--block", str(BLOCK[name]), cwd=tmp_path)
    found = []
    for model, out in (("lora/model", "a"), ("merged", "b")):  # the models alone, without the run's rows
        rows = ["--rows", "3", "--model", model, "--out", out, "--block", str(BLOCK[name])]
        run("eval", *rows, *asked, "data.train=synthetic", cwd=tmp_path)
        metrics = json.loads((tmp_path / out / "eval.json").read_text())["metrics"]
        found.append(metrics["validation_nll"]["value"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
