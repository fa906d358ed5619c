"""Two gloo ranks against one process, trajectory for trajectory: DDP and FSDP2, through the Trainer and by hand."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stabledllm.models.loading import load_model
from tests.cli.forked import Forked, ranks
from tests.fakes import tiny
from tests.training import rank_devices

ROOT = Path(__file__).parents[2]
LORA = {"rank": 3, "modules_to_save": ["norm"]}
KINDS = {
    "ddp-lora": {"sharded": None, "lora": LORA, "dtype": "float64"},
    "fsdp2": {"sharded": "SHARDED_STATE_DICT", "lora": None, "dtype": "float64"},
    "fsdp2-lora": {"sharded": "FULL_STATE_DICT", "lora": LORA, "dtype": "float64"},
}
if find_spec("deepspeed"):
    KINDS["zero2"] = {"sharded": "zero2", "lora": None, "dtype": "float32"}
    KINDS["zero3"] = {"sharded": "zero3", "lora": None, "dtype": "float32"}
    KINDS["zero3-lora"] = {"sharded": "zero3", "lora": LORA, "dtype": "float32"}
ON_A_GPU = {"use_cpu": False, "ddp_backend": "gloo"}
TOLERANCE = {"float64": (1e-9, 1e-6, 1e-9), "float32": (1e-5, 1e-3, 1e-5)}
"""Relative of losses; relative and absolute of weights after the optimizer."""


def one_of(name: str) -> str:
    """The run of one process that a run of two is held against."""
    return f"one-{bool(KINDS[name]['lora'])}-{KINDS[name]['dtype']}"


def settings(folder: Path, name: str, lora: dict | None, micro: int, sharded: str | None = None) -> dict:
    zero = ON_A_GPU if (sharded or "").startswith("zero") else {}
    return {
        "model": str(folder / "base"), "out": str(folder / name), "lora": lora, "method": "ppots+mirror",
        "batch": 8, "micro_batch": micro, "steps": 6, "save_every": 3, "eval_every": 3, "log_every": 1,
        "data": {"train": "synthetic:easy", "train_rows": 24, "validation_rows": 3, "test_rows": 2},
        "ppots": {"rows": 4, "rates": 6, "masks": 2, "starts": 2}, "trainer": {"learning_rate": 1e-2} | zero,
        "decoding": {"length": 16, "steps": 4, "block": 8},
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One launch of two ranks does everything; starting processes costs more than the steps."""
    folder = tmp_path_factory.mktemp("devices")
    tiny.model().float().save_pretrained(folder / "base")
    plan = {}
    for name, kind in KINDS.items():
        own = settings(folder, name, kind["lora"], 4, kind["sharded"])
        plan[name] = {"settings": own, "sharded": kind["sharded"], "dtype": kind["dtype"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    workers = ranks(lambda launched: Forked(lambda: rank_devices.main(folder / "plan.json"), ROOT, launched))
    single = {}
    for name, kind in KINDS.items():
        if (one := one_of(name)) not in single:
            single[one] = rank_devices.train(settings(folder, one, kind["lora"], 8), None, kind["dtype"])
    for worker in workers:
        ended = worker.ended()
        assert ended.returncode == 0, ended.stderr[-3000:]
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return folder, found, json.loads(json.dumps(single))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "model").glob("*.safetensors")
    return load_file(path)


def of_both(ranks: list[dict], name: str) -> tuple[dict, dict[str, float]]:
    """Draws by (step, position), each by one rank alone, and the ranks' parts of the loss added up, by step."""
    draws: dict = {}
    for rank in ranks:
        for step, position, t, masked in rank[name]["draws"]:
            assert (step, position) not in draws, "no row is counted by both ranks"
            draws[step, position] = (t, masked)
    losses = [rank[name]["losses"] for rank in ranks]
    return draws, {step: losses[0][step] + losses[1][step] for step in losses[0]}


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_devices_train_as_one(runs, name):
    """Noise bit for bit; p(t), losses, weights and what the run reports, as far as sums in another order allow."""
    folder, ranks, single = runs
    one, (close, *weights_close) = one_of(name), TOLERANCE[KINDS[name]["dtype"]]
    draws, losses = of_both(ranks, name)
    assert draws == {(s, p): (t, masked) for s, p, t, masked in single[one]["draws"]}
    assert losses == pytest.approx(single[one]["losses"], rel=close)
    ours, theirs = weights(folder / name), weights(folder / one)
    assert ours.keys() == theirs.keys(), "the model's own layout, from however many shards"
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=weights_close[0], atol=weights_close[1])
    assert (folder / name / "p_of_t.json").read_bytes() == (folder / one / "p_of_t.json").read_bytes()
    records = [json.loads((folder / out / "run.json").read_text()) for out in (name, one)]
    for key in ("steps", "forward_passes", "probe_forward_passes"):
        assert records[0][key] == records[1][key]
    nll = [r["metrics"]["validation_nll"]["value"] for r in records]
    assert nll[0] == pytest.approx(nll[1], rel=close)
    completions = [(folder / out / "completions.jsonl").read_text() for out in (name, one)]
    assert completions[0] == completions[1], "every rank runs the same forwards, or none waits for the first"


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_devices_resume_to_the_same_bits(runs, name):
    folder, ranks, _ = runs
    whole, cut = of_both(ranks, name), of_both(ranks, f"{name}-cut")
    assert cut[1] == {step: loss for step, loss in whole[1].items() if int(step) >= 3}
    ours, theirs = weights(folder / f"{name}-cut"), weights(folder / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_many_devices_saved_loads_on_one(runs, name):
    folder, _, _ = runs
    loaded = load_model(str(folder / name / "model"), torch.float64)
    one = load_model(str(folder / one_of(name) / "model"), torch.float64)
    ids = torch.arange(12)[None] + 40
    with torch.no_grad():
        ours, theirs = (m.model.eval()(ids).logits for m in (loaded, one))
    close = 1e-6 if KINDS[name]["dtype"] == "float64" else 1e-3
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@pytest.mark.long
@pytest.mark.processes
def test_fully_sharded_steps_are_those_of_one_process(runs):
    """Model, head and objective under ``fully_shard``, with steps in which a rank has no masked token."""
    _, ranks, _ = runs
    ranks = [rank["by hand"] for rank in ranks]
    whole = rank_devices.by_hand(1, 0)
    alone = [a != b for a, b in zip(ranks[0]["empty"], ranks[1]["empty"], strict=True)]
    assert any(alone), "one rank without a masked token while the other has some"
    for step, loss in enumerate(whole["losses"]):
        assert ranks[0]["losses"][step] + ranks[1]["losses"][step] == pytest.approx(loss, rel=1e-12)
        for rank in ranks:
            torch.testing.assert_close(
                torch.tensor(rank["gradients"][step]), torch.tensor(whole["gradients"][step]), rtol=1e-6, atol=1e-7
            )
