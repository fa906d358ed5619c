"""``benchmarks/gpu.py`` without a GPU: a rehearsal of all of it, and what becomes of an item that fails."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from stabledllm.models.shapes import PUBLISHED
from tests.cli.runner import ROOT

GIB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    for name in [name for name in sys.modules if name in ("common", "gpu") or name.startswith("gpu_")]:
        del sys.modules[name]


def run(gpu, device, items, seconds=60.0):
    """The record of some items, and what was kept after each."""
    kept = []
    gpu.items = lambda scale: items
    return gpu.run(device, gpu.gpu_items.REHEARSAL, seconds, lambda record: kept.append(json.dumps(record))), kept


@pytest.mark.long
@pytest.mark.slow
def test_a_rehearsal_measures_everything_and_writes_it(gpu, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {item["status"] for item in record["items"].values()} == {"done"}
    assert record["items"]["model"]["parameters"] == record["items"]["model"]["expected"]
    assert all(one["same masks as on the CPU"] for one in list(record["items"]["noise"].values())[1:-1])
    for length in (32, 64):
        step = record["items"][f"training, rows of {length}"]
        lean, plain = step["lean head"], step["all logits"]
        assert lean["peak_bytes"] < plain["peak_bytes"], "full logits need more"
        assert lean["first_loss"] == pytest.approx(plain["first_loss"], rel=0.02), "one loss, in bfloat16"
        assert lean["utilisation"] is None, "no speed is known of a CPU"
        assert (step["tuning"], step["checkpointing"]) == ("all weights", False)
    decoded = record["items"]["decoding"]
    assert decoded["cache none"]["same_tokens"] > 0.9
    assert len(record["ratios"]) == 2 * 5 + 3 + 1 + 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*record["items"], *record["ratios"]))


def test_without_a_gpu_it_says_so(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("gpu: expected a CUDA device, found none; --rehearse runs")


def test_an_item_that_fails_is_its_own_result(gpu):
    def too_large(*_):
        yield "lean head", {"seconds": 1.0}
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    def wrong(*_):
        raise ValueError("a shape")
        yield

    def endless(*_):
        while True:
            time.sleep(0.01)
        yield

    items = {
        "large": (9, too_large),
        "wrong": (9, wrong),
        "endless": (0.1, endless),
        "good": (9, lambda *_: [("n", 1)]),
    }
    record, kept = run(gpu, gpu.Device(), items)
    found = {name: (one["status"], one.get("reason")) for name, one in record["items"].items() if name != "model"}
    assert found == {
        "large": ("out of memory", "CUDA out of memory. Tried to allocate 9 GiB."),
        "wrong": ("failed", "ValueError: a shape"),
        "endless": ("stopped", "took longer than 0 s"),
        "good": ("done", None),
    }
    assert record["items"]["large"]["lean head"] == {"seconds": 1.0}, "what was there before is kept"
    assert record["items"]["good"]["n"] == 1
    assert len(kept) == 5
    assert list(json.loads(kept[1])["items"]) == ["model", "large"], "written after each"


def test_what_no_time_is_left_for_is_skipped_with_the_reason(gpu):
    items = {"first": (1, lambda *_: time.sleep(0.3) or []), "good": (30, lambda *_: [])}
    skipped = run(gpu, gpu.Device(), items, seconds=10.2)[0]["items"]["good"]
    assert skipped["status"] == "skipped"
    assert skipped["reason"].endswith(" s were left of 10 s")


def test_without_a_model_everything_else_is_skipped(gpu, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu.gpu_items, "make_model", none)
    record, _ = run(gpu, gpu.Device(), {"good": (9, lambda *_: [])})
    assert [one["status"] for one in record["items"].values()] == ["out of memory", "skipped"]
    monkeypatch.setattr(gpu, "items", lambda scale: {"good": (9, lambda *_: [])})
    assert gpu.main(["--rehearse"]) == 1, "nothing was measured"


def sized(gpu, gib: float):
    device = gpu.Device()
    device.total_bytes = gib * GIB
    return device


@pytest.mark.parametrize(
    ("gib", "tuning", "again"),
    [(139, "all weights", False), (79, "all weights", True), (47, "LoRA", True)],
)
def test_all_weights_where_they_fit_and_adapters_where_not(gpu, gib, tuning, again):
    full = gpu.gpu_items.FULL
    assert full.shape == PUBLISHED["GSAI-ML/LLaDA-8B-Base"]
    found = gpu.gpu_items.tuning_of(sized(gpu, gib), full, 8, 1024)
    assert found.words == {"tuning": tuning, "checkpointing": again}


def test_a_step_with_adapters_and_recomputed_activations_leaves_the_model_as_it_was(gpu):
    items, device = gpu.gpu_items, sized(gpu, 0.0)
    scale = replace(items.REHEARSAL, repeats=1)
    model = items.make_model(device, scale.shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = dict(items.training(device, scale, model, length=32))
    assert (found["tuning"], found["checkpointing"]) == ("LoRA", True)
    assert found["lean head"]["needed_flops"] == found["all logits"]["needed_flops"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.is_gradient_checkpointing


def test_needed_operations_by_hand(gpu):
    items = gpu.gpu_items
    shape = items.REHEARSAL.shape
    batch = items.batch_of(items.REHEARSAL, [8, 4], 8, torch.device("cpu"))
    draw = items.drawn(batch, 0)
    masked = int(draw.mask.sum())
    weights, head, attention = 2 * (4 * 64 * 64 + 3 * 64 * 96), 1000 * 64, 4 * 2 * 64 * (64 + 16)
    whole = items.needed_flops(shape, batch, draw, frozen=False)
    assert whole == 6 * (weights * 12 + head * masked) + 3 * attention
    assert items.needed_flops(shape, batch, draw, frozen=True) == 4 * (weights * 12 + head * masked) + 3 * attention


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989), ("A100-SXM4", 312), ("T4", None)],
)
def test_the_speed_of_a_device(gpu, name, teraflops):
    device = gpu.Device()
    device.name = name
    assert device.peak_flops == (teraflops and teraflops * 1e12)


class FakeCUDA:
    """What the seam calls of torch.cuda."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        numbers = {"current_device": 0, "memory_allocated": 5, "max_memory_allocated": 9}
        known = numbers | {"get_device_name": "NVIDIA H200"}

        def call(*_):
            self.calls.append(name)
            return type("P", (), {"total_memory": 7})() if name == "get_device_properties" else known.get(name)

        return call


def test_the_seam_on_cuda_resets_the_peak_before_and_waits_before_it_reads(gpu, monkeypatch):
    fake = FakeCUDA()
    monkeypatch.setattr(gpu.torch, "cuda", fake)
    device = gpu.CUDADevice()
    assert (device.name, device.total_bytes, device.kind.type, device.peak_flops) == ("NVIDIA H200", 7, "cuda", 989e12)
    fake.calls.clear()
    with device.watching(lambda: iter(())) as memory:
        fake.calls.append("the step")
    assert (memory.resident, memory.peak) == (5, 9)
    assert fake.calls == [
        "synchronize", "reset_peak_memory_stats", "memory_allocated", "the step", "synchronize", "max_memory_allocated",
    ]  # fmt: skip
    fake.calls.clear()
    gpu.gpu_items.timed(device, lambda: fake.calls.append("run"), 2)
    assert fake.calls == ["run", *["synchronize", "run", "synchronize"] * 2]
