"""Models with experts: parameters and memory from config.json alone, against what a small model has and holds."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.families.experts import Experts
from stabledllm.models.families.llada2 import LLaDA2MoeModelLM
from stabledllm.models.families.llada2_config import LLaDA2MoeConfig
from stabledllm.models.families.llada_moe import LLaDAMoEConfig, LLaDAMoEModelLM
from stabledllm.models.loading import LoadedModel
from stabledllm.models.moe_shapes import LLADA2_FLASH, LLADA2_MINI, LLADA_MOE
from stabledllm.models.shapes import PUBLISHED, read_shape, shape_of
from stabledllm.planning.activations import Forward
from tests.fakes.hub_models import write_llada_moe
from tests.fakes.llada2 import write_llada2
from tests.models.families.cases import MIXED, PLAIN_ROUTER, load
from tests.planning.live_bytes import LiveBytes
from tests.planning.test_activations import TOLERANCE, step_bytes

ROWS, LENGTH = 3, 64


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


CASES = {
    "llada2": (write_llada2, {}),
    "plain": (write_llada2, PLAIN_ROUTER),
    "llada-moe": (write_llada_moe, {}),
    "mixed": (write_llada_moe, MIXED),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_of_small_models_and_their_adapters(tmp_path, case):
    write, config = CASES[case]
    folder = write(tmp_path, config=config)
    shape, model = shape_of(str(folder)), load(folder)
    assert shape.parameters == count(model)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head]
    assert shape.linear_in_all == sum(m.weight.numel() for m in linear)
    assert shape.lora_parameters(4, "all-linear") == sum(4 * (m.in_features + m.out_features) for m in linear)
    for targets in (["gate_proj"], ["down_proj", "up_proj"], ["mlp.gate_proj"], ["shared_experts.up_proj"]):
        named = [
            m for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and any(name.endswith(f".{target}") for target in targets)
        ]  # fmt: skip
        if "shared_experts.up_proj" in targets and not (named and write is write_llada2):
            continue
        assert shape.lora_parameters(4, targets) == sum(4 * (m.in_features + m.out_features) for m in named), targets
    with pytest.raises(UserError, match="no linear layer 'gate_up_proj' in a "):
        shape.lora_parameters(4, ["gate_up_proj"])


def test_layers_of_unknown_kinds_are_refused_and_no_more_are_dense_than_there_are(tmp_path):
    folder = write_llada_moe(tmp_path / "a")
    words = "moe_layer_freq: expected a list of 0 and 1, one for each of the 2 layers"
    for kinds in (1, "x", [1], [1, "x"], {}):
        change(folder, moe_layer_freq=kinds)
        with pytest.raises(UserError, match=words):
            shape_of(str(folder))
    folder = write_llada2(tmp_path / "b")
    change(folder, first_k_dense_replace=9)
    shape = shape_of(str(folder))
    assert (shape.dense_layers, shape.expert_layers) == (3, 0)


def change(folder, **keys) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_published_sizes():
    for kind, config, shape, billions in (
        (LLaDA2MoeModelLM, LLaDA2MoeConfig(), LLADA2_MINI, 16.26),
        (LLaDAMoEModelLM, LLaDAMoEConfig(), LLADA_MOE, 7.36),
    ):
        with torch.device("meta"):
            assert count(kind(config)) == shape.parameters
        assert round(shape.parameters / 1e9, 2) == billions
    assert round(LLADA2_FLASH.parameters / 1e9, 2) == 102.89
    for name, shape in (("LLaDA2.0-mini", LLADA2_MINI), ("LLaDA2.1-flash", LLADA2_FLASH)):
        assert PUBLISHED[f"inclusionAI/{name}"] == shape


def small_llada2() -> LLaDA2MoeModelLM:
    torch.manual_seed(0)
    config = LLaDA2MoeConfig(
        vocab_size=600, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, num_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4, moe_intermediate_size=32,
        block_size=8,
    )  # fmt: skip
    return LLaDA2MoeModelLM._from_config(config, attn_implementation="sdpa").train()


def peak_of_a_step(model) -> tuple[int, int]:
    """The bytes beyond weights and gradients, and the positions that carry loss."""
    ids, block = torch.randint(0, 600, (ROWS, LENGTH)), torch.arange(LENGTH).expand(ROWS, -1) // 8
    selected = torch.rand(ROWS, LENGTH) < 0.5

    def loss():
        return model(ids, selected=selected, targets=ids, block_ids=block).nll.mean()

    loss().backward()
    live = LiveBytes()
    live.ignore([t for p in model.parameters() for t in (p, p.grad) if t is not None])
    live.ignore(list(model.buffers()))
    with live:
        loss().backward()
    return live.peak, int(selected.sum())


def shape_of_model(model: LLaDA2MoeModelLM):
    return read_shape(json.loads(model.config.to_json_string(use_diff=False)), "here")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["query_key_value", "dense"]], ids=["experts", "attention"])
def test_what_a_step_of_adapters_holds(targets, checkpointing):
    """Frozen weights need no activations of their own; adapters on experts keep what they read."""
    model = small_llada2()
    adapted = add_lora(LoadedModel(model, None, "it"), LoRAOptions(rank=4, target_modules=targets)).model
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    peak, positions = peak_of_a_step(adapted)
    shape = shape_of_model(model)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == shape.lora_parameters(4, targets)
    run = Forward(ROWS, LENGTH, "float32", checkpointing, adapters=shape.targets(targets), rank=4, copies=2)
    assert step_bytes(shape, run, positions=positions) == pytest.approx(peak, rel=TOLERANCE)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_step_holds(compute, grouped, checkpointing, monkeypatch):
    """All experts' weights are held whatever is chosen; activations are those of the chosen ones alone."""
    if not grouped:
        monkeypatch.setattr(Experts, "grouped", lambda *_: None)
    model = small_llada2().to(getattr(torch, compute))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    peak, positions = peak_of_a_step(model)
    run = Forward(ROWS, LENGTH, compute, checkpointing, copies=2)
    assert step_bytes(shape_of_model(model), run, positions=positions) == pytest.approx(peak, rel=TOLERANCE)
