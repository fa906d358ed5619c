"""Weights, gradients and optimizer by sharding: bytes per parameter written out; advice; what launch settings mean."""

from __future__ import annotations

import json

import pytest

from stabledllm.config import load_recipe
from stabledllm.errors import UserError
from stabledllm.models.shapes import shape_of
from stabledllm.planning import environment
from stabledllm.planning.advice import advise, cheapest_changes, check_fits
from stabledllm.planning.environment import launched_layout
from stabledllm.planning.layout import GIB, SHARDINGS, Layout, parse_memory
from stabledllm.planning.memory import estimate

P = 8_015_581_184
BLOCK, ENDS = 218_112_000, 2 * 126464 * 4096 + 4096


def recipe(*overrides: str):
    settings = load_recipe("gsm8k/llada-8b", overrides)
    return settings, shape_of(settings.model)


def memory(*overrides: str, devices: int = 1, sharding: str = "ddp", **more):
    return estimate(*recipe(*overrides), Layout(devices, sharding, **more))


@pytest.mark.parametrize(
    ("overrides", "devices", "sharding", "per_parameter"),
    [
        # (weights, gradients, optimizer) in bytes per parameter and device
        (["dtype=bfloat16"], 1, "ddp", (2, 2, 4)),
        (["dtype=float32", "trainer.bf16=false"], 1, "ddp", (4, 4, 8)),
        (["dtype=float32"], 1, "ddp", (4 + 2, 4, 8)),
        (["dtype=bfloat16"], 8, "ddp", (2, 2, 4)),
        (["dtype=bfloat16"], 8, "fsdp2", (4 / 8, 4 / 8, 8 / 8)),
        (["dtype=bfloat16", "trainer.bf16=false"], 8, "fsdp2", (2 / 8, 2 / 8, 4 / 8)),
        (["dtype=bfloat16"], 1, "zero2", (2, 6, 12)),
        (["dtype=bfloat16"], 8, "zero2", (2, 6 / 8, 12 / 8)),
        (["dtype=bfloat16"], 8, "zero3", (2 / 8, 6 / 8, 12 / 8)),
        (["dtype=bfloat16"], 8, "zero2_offload", (2, 0, 0)),
        (["dtype=bfloat16"], 8, "zero3_offload", (0, 0, 0)),
    ],
)
def test_states(overrides, devices, sharding, per_parameter):
    found = memory(*overrides, devices=devices, sharding=sharding)
    for size, each in zip((found.weights, found.gradients, found.optimizer), per_parameter, strict=True):
        assert size == pytest.approx(each * P)


def test_averages_of_the_weights_are_float32():
    three = ["average.ema=[0.999]", "average.power=[0.05,0.1]"]
    assert memory(*three).averages == 3 * 4 * P
    assert memory(*three, devices=8, sharding="fsdp2").averages == pytest.approx(3 * 4 * P / 8)
    assert memory(*three).total == pytest.approx(memory().total + 12 * P)
    lora = memory("lora.rank=8", *three)
    assert 0 < lora.averages < 0.01 * 12 * P, "of adapters alone"
    moved = memory(*three, "average.on_cpu=true", devices=4)
    assert (moved.averages, moved.host) == (0, 4 * 12 * P)
    assert memory(*three, "average.on_cpu=true", devices=4, sharding="fsdp2").host == pytest.approx(12 * P)
    assert "averages" in memory(*three).parts
    assert "averages" not in memory().parts


def test_averages_in_main_memory_are_among_the_cheapest_changes():
    settings, shape = recipe("average.ema=[0.999]", "dtype=bfloat16", "trainer.gradient_checkpointing=true")
    limit = memory("average.ema=[0.999]", "dtype=bfloat16", "trainer.gradient_checkpointing=true").needed - GIB
    (same, _), *_ = cheapest_changes(settings, shape, Layout(1, "ddp"), limit)
    assert same.words == "average.on_cpu=true"


def test_what_is_gathered_and_what_lies_in_main_memory():
    assert memory().gathered == 0
    assert memory(devices=4).gathered == 2 * P, "DDP's buckets hold the gradients a second time"
    assert memory(devices=8, sharding="fsdp2").gathered == 2 * 2 * BLOCK + 2 * ENDS + 2 * (BLOCK + ENDS)
    assert memory(devices=8, sharding="zero2").gathered == 2 * 5e8 * 2
    assert memory(devices=8, sharding="zero3").gathered == 2 * 5e8 * 2 + 1e9 * 2
    assert memory(devices=8, sharding="zero2_offload").host == 16 * P
    assert memory(devices=8, sharding="zero3_offload").host == 18 * P
    assert not any(memory(devices=8, sharding=s).host for s in ("ddp", "fsdp2", "zero2", "zero3"))


def test_lora_keeps_the_base_once_and_everything_else_for_the_adapters_alone():
    settings = load_recipe("gsm8k/llada-8b+lora")
    shape = shape_of(settings.model)
    adapters = 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 12288))
    assert shape.lora_parameters(64, "all-linear") == adapters
    whole = estimate(settings, shape, Layout())
    assert whole.weights == 2 * P + (4 + 2) * adapters, "in float32, and in bfloat16 under autocast"
    assert (whole.gradients, whole.optimizer) == (4 * adapters, 8 * adapters)
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 12288)
    for bits, size in (("4bit", 0.5159), ("8bit", 1.0)):
        small = estimate(settings.model_copy(update={"quantised": bits}), shape, Layout())
        assert whole.weights - small.weights == pytest.approx((2 - size) * linear, rel=1e-4)


def test_activations_follow_rows_views_and_length():
    one = memory("method=standard")
    assert memory("method=mirror").activations == pytest.approx(2 * one.activations)
    assert memory("method=standard", "micro_batch=4").activations == pytest.approx(4 * one.activations)
    assert memory("method=standard", longest=2048).activations == pytest.approx(one.activations / 2)
    assert memory("method=standard", "trainer.gradient_checkpointing=false").activations > 5 * one.activations
    arm = load_recipe("gsm8k/llama3.1-8b")
    assert estimate(arm, shape_of(arm.model), Layout()).activations > 0


def test_the_total_is_the_sum_and_needs_a_reserve():
    found = memory()
    parts = found.weights + found.gradients + found.optimizer + found.gathered + found.activations + found.loss_head
    assert found.total == parts
    assert found.needed == pytest.approx(parts * 1.05 + GIB)
    assert found.all_logits > 8 * GIB


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * GIB), ("80", 80 * GIB), ("24 GB", 24e9), ("512mib", 2**29), ("1.5GiB", 1.5 * GIB)]
)
def test_memory_is_parsed(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-3", "80TB", "0GiB"])
def test_no_memory(text):
    with pytest.raises(UserError, match="such as 80GiB"):
        parse_memory(text)


KEPT = "trainer.gradient_checkpointing=false"


@pytest.mark.parametrize(
    ("overrides", "layout", "limit", "words"),
    [
        (
            ["trainer.gradient_checkpointing=false", "micro_batch=4"],
            Layout(),
            90,
            "trainer.gradient_checkpointing=true",
        ),
        (["micro_batch=8"], Layout(), 76, "micro_batch=2"),
        (["dtype=float32"], Layout(8), 80, "sharding fsdp2"),
        ([], Layout(), 40, "sharding zero2_offload"),
        (["micro_batch=8"], Layout(), 20, "micro_batch=1 sharding zero3_offload"),
        (["micro_batch=8"], Layout(1, "zero3_offload"), 20, "micro_batch=2"),
    ],
)
def test_the_cheapest_change_that_fits(overrides, layout, limit, words):
    settings, shape = recipe(*overrides)
    assert estimate(settings, shape, layout).needed > limit * GIB
    change, after = cheapest_changes(settings, shape, layout, limit * GIB)[0]
    assert change.words == words
    assert after.needed <= limit * GIB
    assert after == estimate(change.settings, shape, change.layout)


def test_adapters_are_offered_beside_what_trains_the_same():
    settings, shape = recipe()
    same, adapters = (change.words for change, _ in cheapest_changes(settings, shape, Layout(), 40 * GIB))
    assert (same, adapters) == ("sharding zero2_offload", "+lora")
    said = advise(settings, shape, Layout(), 40 * GIB)
    assert "of main memory), or with +lora (" in said
    _, (change, after) = cheapest_changes(settings, shape, Layout(), 16 * GIB)
    assert change.words == "+lora quantised=4bit"
    assert change.settings.lora.rank == 64
    assert after.weights < 7 * GIB
    adapted = load_recipe("gsm8k/llada-8b+lora")
    assert [c.words for c, _ in cheapest_changes(adapted, shape, Layout(), 16 * GIB)] == ["sharding zero3_offload"]


def test_nothing_fits():
    settings, shape = recipe("data.max_len=64")
    assert cheapest_changes(settings, shape, Layout(), 4 * GIB) == []
    assert "nothing makes it fit but more devices" in advise(settings, shape, Layout(), 4 * GIB)


def test_check_fits_is_one_sentence():
    settings, shape = recipe()
    with pytest.raises(UserError) as refused:
        check_fits(settings, shape, Layout(), 40 * GIB, what="model 'x'")
    said = str(refused.value)
    for word in ("model 'x' needs about 68.9 GiB per device", "optimizer 29.9 GiB", "found 40.0 GiB", "it fits with"):
        assert word in said, said
    assert said.count(". ") == 0
    check_fits(settings, shape, Layout(), 66 * GIB, what="x")


def deepspeed(**zero) -> dict:
    return {"deepspeed": {"zero_optimization": zero}}


ACCELERATE = "ACCELERATE_USE_"
OFFLOAD = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"


@pytest.mark.parametrize(
    ("trainer", "set_by_launch", "sharding"),
    [
        ({}, {}, "ddp"),
        ({}, {ACCELERATE + "FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({}, {ACCELERATE + "DEEPSPEED": "true"}, "zero2"),
        ({}, {ACCELERATE + "DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({}, {ACCELERATE + "DEEPSPEED": "true", OFFLOAD: "cpu"}, "zero2_offload"),
        ({}, {ACCELERATE + "DEEPSPEED": "true", OFFLOAD: "none"}, "zero2"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}},
            {},
            "zero2_offload",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}}, {}, "zero3"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, {}, "ddp"),
    ],
)
def test_what_the_launcher_chose(trainer, set_by_launch, sharding):
    assert launched_layout(trainer, {"WORLD_SIZE": "4", **set_by_launch}, 7) == Layout(4, sharding, 7)


def test_a_deepspeed_file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}))
    assert launched_layout({"deepspeed": str(path)}, {}, 1).sharding == "zero3_offload"
    by_launch = {ACCELERATE + "DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    assert launched_layout({}, by_launch, 1).sharding == "zero3_offload"


@pytest.mark.parametrize(
    "text", ["{", "[" * 5000, '{"zero_optimization": 3}', '{"zero_optimization": {"stage": "two"}}', "\\xff"]
)
def test_a_deepspeed_file_that_is_none(tmp_path, text):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"ds\.json|trainer\.deepspeed"):
        launched_layout({"deepspeed": str(path)}, {}, 1)


def test_train_refuses_before_it_loads_weights_and_again_when_it_knows_the_rows(tmp_path, monkeypatch):
    from stabledllm.training import run

    monkeypatch.setattr(environment, "device_memory", lambda: 8e6)
    loaded = []
    monkeypatch.setattr(run, "build_model", lambda *a, **k: loaded.append(a))
    settings = load_recipe("sft-synthetic", [f"out={tmp_path}"])
    with pytest.raises(UserError, match="model 'tiny' needs about"):
        run.train(settings)
    assert not loaded

    monkeypatch.undo()
    monkeypatch.setattr(environment, "device_memory", lambda: 60e6)
    longest_of, read = run.longest_of, []
    monkeypatch.setattr(run, "longest_of", lambda rows: read.append(len(rows)) or longest_of(rows))
    with pytest.raises(UserError, match="activations"):
        run.train(load_recipe("sft-synthetic", [f"out={tmp_path}"]), say=loaded.append)
    assert read == [4000], "the rows were read"
    assert not (tmp_path / "run.json").exists()


def test_nothing_is_said_on_a_cpu_or_of_an_unknown_model(monkeypatch):
    settings = load_recipe("gsm8k/llada-8b")
    monkeypatch.setattr(environment, "device_memory", lambda: None)
    environment.refuse_too_large(settings, 4096)
    monkeypatch.setattr(environment, "device_memory", lambda: 1.0)
    environment.refuse_too_large(settings.model_copy(update={"model": "somebody/else"}), 4096)
    environment.refuse_too_large(load_recipe("sft-synthetic", ["trainer.use_cpu=true"]), 4096)
    with pytest.raises(UserError):
        environment.refuse_too_large(settings, 1)


def test_unknown_sharding_and_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=f"expected a sharding of {', '.join(SHARDINGS)}, found 'zero9'"):
        Layout(1, "zero9")
    with pytest.raises(UserError, match="multiple of micro_batch x devices = 1 x 5"):
        memory(devices=5)


def test_views_of_a_row_as_many_as_fit(monkeypatch):
    """The estimate counts the views that are held at a time, and ``auto`` takes the most that fit."""
    settings, shape = recipe("views_per_forward=auto", "method=ppots+partition3", "micro_batch=8")
    needs = {}
    for views in (1, 2, 3):
        chosen = settings.model_copy(update={"views_per_forward": views})
        needs[views] = estimate(chosen, shape, Layout(longest=4096)).needed
    assert needs[1] < needs[2] < needs[3]
    assert estimate(settings, shape, Layout(longest=4096)).needed == needs[1]
    for memory, views in ((needs[3], 3), (needs[3] - 1, 2), (needs[2] - 1, 1), (1.0, 1), (None, None)):
        monkeypatch.setattr(environment, "device_memory", lambda memory=memory: memory)
        assert environment.fitting_views(settings, 4096).views_per_forward == views
    monkeypatch.setenv(ACCELERATE + "DEEPSPEED", "true")
    monkeypatch.setattr(environment, "device_memory", lambda: 1.0)
    assert environment.fitting_views(settings, 4096).views_per_forward is None
    given = settings.model_copy(update={"views_per_forward": 2})
    assert environment.fitting_views(given, 4096) is given
