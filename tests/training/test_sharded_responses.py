"""Preferences and policy gradients with sharded weights: two gloo ranks under FSDP2 against one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.forked import Forked, ranks
from tests.fakes import tiny
from tests.training import rank_responses

ROOT = Path(__file__).parents[2]
LORA = {"rank": 3, "modules_to_save": ["norm"]}
KINDS = {
    "copy": {"dpo": {"reference": "copy"}},
    "adapter": {"dpo": {"reference": "adapter"}, "lora": LORA},
    "kept": {"dpo": {"reference": "kept", "correction": "jackknife"}},
    "policy": {"grpo": {"beta": 0.1}, "method": "lowdisc+fixedcount"},
    "policy of tokens": {"grpo": {"beta": 0.1, "estimator": "coupled", "budget": 3, "mean": "token"}, "lora": LORA},
}
PAIRS = sorted(name for name, kind in KINDS.items() if "dpo" in kind)


def settings(folder: Path, name: str, micro: int) -> dict:
    kind = KINDS[name.removesuffix("-one")]
    own = {
        "model": str(folder / "base"), "out": str(folder / name), "lora": kind.get("lora"), "method": "standard",
        "steps": 4, "log_every": 1, "eval_draws": 1, "untuned": False, "trainer": {"learning_rate": 1e-2},
        "decoding": {"length": 16, "steps": 4, "block": 8},
    }  # fmt: skip
    if name.removesuffix("-one") in PAIRS:
        return own | {
            "objective": {"kind": "dpo"}, "method": "lowdisc+fixedcount", "batch": 8, "micro_batch": micro,
            "save_every": 2, "dpo": {"budget": 4, "tokens_per_forward": 100, "sft": 0.1} | kind["dpo"],
            "data": {"train": str(folder / "pairs.jsonl"), "validation_share": 0.2, "max_len": 200},
        }  # fmt: skip
    drawn = {"group": 3, "inner": 2, "tokens_per_forward": 60, "rollout": {"length": 8, "steps": 4, "block": 8}}
    return own | {
        "objective": {"kind": "grpo"}, "batch": 4, "micro_batch": micro // 2, "save_every": 1, "generate_batch": 5,
        "grpo": drawn | kind["grpo"], "method": kind.get("method", "standard"),
        "data": {"train": str(folder / "prompts.jsonl"), "validation_share": 0, "max_len": 200},
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One launch of two ranks does everything; starting processes costs more than the steps."""
    folder = tmp_path_factory.mktemp("pairs")
    tiny.model().float().save_pretrained(folder / "base")
    pairs = [
        {"prompt": f"{i}?", "chosen": f"It is {'so ' * (i * 7 % 11)}{i}.", "rejected": f"No{' no' * (i * 5 % 9)}!"}
        for i in range(25)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    prompts = [{"prompt": f"{i}+1=?{'?' * (i * 5 % 7)}"} for i in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    plan = {name: {"settings": settings(folder, name, 4), "sharded": "SHARDED_STATE_DICT"} for name in KINDS}
    (folder / "plan.json").write_text(json.dumps(plan))
    workers = ranks(lambda launched: Forked(lambda: rank_responses.all_of(folder / "plan.json"), ROOT, launched))
    single = {name: rank_responses.train(settings(folder, f"{name}-one", 8), None) for name in KINDS}
    for worker in workers:
        ended = worker.ended()
        assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)], single


def of_both(ranks: list[dict], name: str) -> dict[str, float]:
    losses = [rank[name]["losses"] for rank in ranks]
    return {step: losses[0][step] + losses[1][step] for step in losses[0]}


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_ranks_train_as_one_device(runs, name):
    folder, ranks, single = runs
    assert of_both(ranks, name) == pytest.approx(single[name]["losses"], rel=1e-9)
    models = [load_file(*(folder / out / "model").glob("*.safetensors")) for out in (name, f"{name}-one")]
    for key in models[1]:
        torch.testing.assert_close(models[0][key], models[1][key], rtol=1e-6, atol=1e-9)
    records = [json.loads((folder / out / "run.json").read_text()) for out in (name, f"{name}-one")]
    for key, metric in records[1]["metrics"].items():
        assert records[0]["metrics"][key]["value"] == pytest.approx(metric["value"], rel=1e-7)
    if name in PAIRS:
        assert {"validation_nll", "preference_loss", "preference_margin"} <= records[1]["metrics"].keys()
        return
    assert records[0]["forward_passes"] == records[1]["forward_passes"]
    assert records[0]["rollout_forward_rows"] == records[1]["rollout_forward_rows"]
    drawn = [sorted((folder / out / "rollouts").glob("*/responses.jsonl")) for out in (name, f"{name}-one")]
    assert len(drawn[0]) == 2
    responses = [[[json.loads(line)["completion"] for line in path.open()] for path in paths] for paths in drawn]
    assert responses[0] == responses[1]


@pytest.mark.long
@pytest.mark.processes
def test_the_ranks_needed_passes_of_another_number(runs):
    _, ranks, single = runs
    for name in KINDS:
        added = [rank[name]["added"] for rank in ranks]
        assert all(min(both) == 0 for both in zip(*added, strict=True)), "the longest rank adds none"
        assert any(map(sum, added)), name
        assert not single[name]["added"]


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", rank_responses.RESUMED)
def test_two_ranks_resume_to_the_same_bits(runs, name):
    folder, ranks, _ = runs
    whole, cut, at = of_both(ranks, name), of_both(ranks, f"{name}-cut"), 2 if name in PAIRS else 3
    assert cut == {step: loss for step, loss in whole.items() if int(step) >= at}
    models = [load_file(*(folder / out / "model").glob("*.safetensors")) for out in (f"{name}-cut", name)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])
