"""Averages under DDP and FSDP2: two gloo ranks against one process, and resumed to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stabledllm.training.averages.rebuilding import plan_rebuilding
from tests.cli.forked import Forked, ranks
from tests.fakes import tiny
from tests.training import rank_devices
from tests.training.test_devices import settings as of_devices

ROOT = Path(__file__).parents[3]
AVERAGE = {"ema": [0.5], "tail": [0.5], "power": [0.05, 0.1], "snapshots": 2}
NAMES = ("ema-0.5", "tail-0.5", "power-0.05", "power-0.1")
# Three rows of an adapter do not divide by two ranks.
KINDS = {"ddp": (None, {}), "fsdp2": ("SHARDED_STATE_DICT", {}), "fsdp2-lora": ("FULL_STATE_DICT", {"rank": 3})}


def settings(folder: Path, name: str, lora: dict, micro: int) -> dict:
    own = of_devices(folder, name, lora or None, micro)
    return own | {"method": "ppots", "average": AVERAGE, "untuned": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages")
    tiny.model().float().save_pretrained(folder / "base")
    plan = {
        name: {"settings": settings(folder, name, lora, 4), "sharded": sharded, "dtype": "float64"}
        for name, (sharded, lora) in KINDS.items()
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    workers = ranks(lambda launched: Forked(lambda: rank_devices.main(folder / "plan.json"), ROOT, launched))
    for name, lora in (("one", {}), ("one-lora", {"rank": 3})):
        rank_devices.train(settings(folder, name, lora, 8), None)
    for worker in workers:
        ended = worker.ended()
        assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.relative_to(folder)}:{k}": v for p in folder.rglob("*.safetensors") for k, v in load_file(p).items()}


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_ranks_average_as_one(runs, name):
    one = runs / ("one-lora" if KINDS[name][1] else "one")
    for part in (*(f"model-{each}" for each in NAMES), "averages", "checkpoint-3/averages"):
        ours, theirs = tensors(runs / name / part), tensors(one / part)
        assert ours.keys() == theirs.keys(), "whole tensors, from however many shards"
        assert theirs
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-9)
    records = [json.loads((folder / "run.json").read_text())["averages"] for folder in (runs / name, one)]
    for each in NAMES:
        found = [record[each]["metrics"] for record in records]
        assert found[0]["validation_nll"]["value"] == pytest.approx(found[1]["validation_nll"]["value"], rel=1e-7)
        assert found[0]["accuracy"]["value"] == found[1]["accuracy"]["value"]
        decoded = [(f / "averages" / each / "completions.jsonl").read_text() for f in (runs / name, one)]
        assert decoded[0] == decoded[1]
    assert plan_rebuilding(runs / name, 0.07).fit.mismatch < 0.1


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_ranks_resume_to_the_same_averages(runs, name):
    whole, cut = runs / name, runs / f"{name}-cut"
    for part in (f"model-{each}" for each in NAMES):
        ours, theirs = tensors(cut / part), tensors(whole / part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    records = [json.loads((folder / "run.json").read_text())["averages"] for folder in (whole, cut)]
    for each in NAMES:
        assert records[0][each]["metrics"]["validation_nll"] == records[1][each]["metrics"]["validation_nll"]
