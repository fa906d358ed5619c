"""The activation estimate against the bytes that a step really holds, tracked storage by storage.

Tolerance 15 % of the measured peak: what is estimated is what lives longest; temporaries inside an operation are not.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stabledllm.config.settings import TrainSettings
from stabledllm.models.chunked_nll import chunk_of
from stabledllm.models.families.block_config import SDARConfig
from stabledllm.models.families.block_model import SDARForCausalLM
from stabledllm.models.shapes import PUBLISHED, known_shape, read_shape
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.planning.activations import (
    Forward,
    full_logits_bytes,
    head_bytes,
    kept_bytes,
    working_bytes,
)
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import _forward
from tests.planning.live_bytes import LiveBytes

TOLERANCE = 0.15
ROWS, LENGTH, WHOLE = 4, 64, 10**9
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}


def step_bytes(shape, run: Forward, **head: int) -> int:
    """The peak above weights, gradients and optimizer."""
    return kept_bytes(shape, run) + max(working_bytes(shape, run), head_bytes(shape, run, **head))


def build(kind: str, layers: int, vocabulary: int):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    config, model = {
        "llama": lambda: (LlamaConfig(**GROUPED, **sizes), LlamaForCausalLM),
        "qwen3": lambda: (Qwen3Config(**GROUPED, **sizes, head_dim=16), Qwen3ForCausalLM),
        "tiny": lambda: (TinyMDMConfig(**SIZES, **sizes), TinyMDM),
    }[kind]()
    return model(config), read_shape(json.loads(config.to_json_string(use_diff=False)), "here")


def loss_of(model, ids, selected, *, autocast: bool = False):
    """The plain head: logits at the selected positions, all at once."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if isinstance(model, TinyMDM):
            return F.cross_entropy(model(ids, selected=selected).logits, ids[selected])
        logits = model.lm_head(model.model(ids).last_hidden_state[selected])
    return F.cross_entropy(logits.float(), ids[selected])


def measured(model, inner, vocabulary: int, *, autocast: bool = False) -> tuple[int, int, int]:
    """(bytes alive after the forward, the peak, selected positions); gradients are there already."""
    ids = torch.randint(0, vocabulary, (ROWS, LENGTH))
    # The shipped model's last layer keeps less where fewer positions are selected; the plan is that of all of them.
    selected = torch.rand(ROWS, LENGTH) < (1.0 if isinstance(inner, TinyMDM) else 0.5)
    model.train()
    loss_of(inner, ids, selected, autocast=autocast).backward()
    live = LiveBytes()
    live.ignore([t for p in model.parameters() for t in (p, p.grad) if t is not None])
    with live:
        loss = loss_of(inner, ids, selected, autocast=autocast)
        forward = live.now
        loss.backward()
    return forward, live.peak, int(selected.sum())


def checkpoint(model) -> None:
    name = "activation_checkpointing_enable"  # transformers before 5.20 calls it otherwise
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def test_the_tracker_counts_a_known_graph():
    x = torch.ones(1000, requires_grad=True)
    live = LiveBytes()
    live.ignore([x])
    with live:
        y = (x * 2).exp()  # x * 2 is freed at once; exp keeps its result
        assert live.now == 4000
        del y
    assert live.now == 0
    assert live.peak == 8000


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("vocabulary", [50, 600])
@pytest.mark.parametrize(
    ("kind", "compute", "checkpointing"),
    [
        *((kind, compute, again) for kind in ("llama", "qwen3") for compute in ("float32", "bfloat16")
          for again in (False, True)),
        ("tiny", "float32", False),
    ],
)  # fmt: skip
def test_full_training(kind, compute, checkpointing, vocabulary, layers):
    model, shape = build(kind, layers, vocabulary)
    model = model.bfloat16() if compute == "bfloat16" else model
    if checkpointing:
        checkpoint(model)
    forward, peak, positions = measured(model, model, vocabulary)
    run = Forward(ROWS, LENGTH, compute, checkpointing)
    assert step_bytes(shape, run, positions=positions, chunk=WHOLE) == pytest.approx(peak, rel=TOLERANCE)
    head = head_bytes(shape, run, positions=positions)
    assert -0.01 * forward < forward - kept_bytes(shape, run) < 0.02 * forward + head, "what the blocks keep, exactly"


@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_two_copies_in_blocks(compute, length):
    """The noisy and the clean row side by side, and the mask between them, which grows with the length's square."""
    torch.manual_seed(0)
    config = SDARConfig(**GROUPED, num_hidden_layers=4, vocab_size=600, head_dim=16, block_size=8)
    model = SDARForCausalLM._from_config(config, attn_implementation="sdpa").to(getattr(torch, compute)).train()
    ids, block = torch.randint(0, 600, (ROWS, length)), torch.arange(length).expand(ROWS, -1) // 8
    selected = torch.rand(ROWS, length) < 0.5

    def loss():
        return model(ids, selected=selected, targets=ids, block_ids=block).nll.mean()

    loss().backward()
    live = LiveBytes()
    live.ignore([t for p in model.parameters() for t in (p, p.grad) if t is not None])
    with live:
        loss().backward()
    shape = read_shape(SIZES | {"model_type": "sdar", "num_hidden_layers": 4, "vocab_size": 600, "head_dim": 16,
                                "num_key_value_heads": 2}, "here")  # fmt: skip
    run = Forward(ROWS, length, compute, copies=2)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert step_bytes(shape, run, positions=int(selected.sum())) == pytest.approx(live.peak, rel=TOLERANCE)
    assert step_bytes(shape, dataclasses.replace(run, copies=1), positions=int(selected.sum())) < 0.6 * live.peak


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_autocast(kind):
    """Beside the activations lives a bfloat16 copy of the weights, which the plan counts with the weights."""
    model, shape = build(kind, 4, 600)
    _, peak, positions = measured(model, model, 600, autocast=True)
    estimate = step_bytes(shape, Forward(ROWS, LENGTH, "autocast"), positions=positions, chunk=WHOLE)
    copies = 2 * (shape.parameters - shape.vocabulary * shape.width)
    assert estimate + copies == pytest.approx(peak, rel=TOLERANCE)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("compute", "autocast"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_lora(compute, autocast, checkpointing, dropout, targets):
    peft = pytest.importorskip("peft")
    base, shape = build("llama", 3, 50)
    base = base.bfloat16() if compute == "bfloat16" else base
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets)
    model = peft.get_peft_model(base, config)
    if checkpointing:
        checkpoint(model.base_model.model)
        model.enable_input_require_grads()
    _, peak, positions = measured(model, model.base_model.model, 50, autocast=autocast)
    run = Forward(
        ROWS, LENGTH, compute, checkpointing, adapters=shape.targets(targets), rank=4, dropout=dropout > 0,
        cast=2 if autocast else 4,
    )  # fmt: skip
    assert step_bytes(shape, run, positions=positions, chunk=WHOLE) == pytest.approx(peak, rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_lladas_own_width(checkpointing):
    """4 of its 32 blocks over 2 rows of 4,096 tokens in bfloat16, with tensors that have a size and no content."""
    shape = dataclasses.replace(PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"], layers=4)
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=12288, num_attention_heads=32, num_hidden_layers=4, vocab_size=126464,
        tie_word_embeddings=False,
    )  # fmt: skip
    positions, before = 2048, torch.get_default_dtype()
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(before)
        if checkpointing:
            checkpoint(model)
        model.train()
        ids, index = torch.zeros(2, 4096, dtype=torch.long), torch.arange(positions)

        def loss():
            hidden = model.model(ids).last_hidden_state.flatten(0, 1)[index]
            return F.cross_entropy(model.lm_head(hidden).float(), ids.flatten()[index])

        loss().backward()
        live = LiveBytes()
        live.ignore([t for p in model.parameters() for t in (p, p.grad)])
        with live:
            found = loss()
            forward = live.now
            found.backward()
    run = Forward(2, 4096, "bfloat16", checkpointing)
    logits = 4 * positions * shape.vocabulary  # kept by the plain head
    assert kept_bytes(shape, run) + logits == pytest.approx(forward, rel=0.05)
    estimate = step_bytes(shape, run, positions=positions, chunk=WHOLE)
    # Our head holds its weight's gradient in float32 from the forward on; the plain one makes it after its logits.
    accumulated = 4 * shape.vocabulary * shape.width
    assert 0.97 * live.peak < estimate < 1.05 * live.peak + accumulated


def test_a_block_of_llada_written_out():
    """bfloat16, all weights trained: numbers from the list of tensors, by hand."""
    shape = PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"]
    D, F_, heads = 4096, 12288, 32
    norm = 4 * D + 2 * D + 4 + 2 * D  # input in float32, normalised, scaling, output
    attention = 4 * 2 * D + 4 * heads
    mlp = 4 * 2 * F_
    tokens = 2 * 4096
    ends = 4 * D + 4 * D  # input of the last norm in float32; its output and normalised input
    one = Forward(2, 4096, "bfloat16")
    assert kept_bytes(shape, one) == tokens * (32 * (2 * norm + attention + mlp) + ends)
    again = Forward(2, 4096, "bfloat16", checkpointing=True)
    assert kept_bytes(shape, again) == tokens * (32 * 2 * D + ends)
    assert working_bytes(shape, one) == tokens * max(2 * (F_ + D), 14 * D)
    assert working_bytes(shape, again) == tokens * (2 * norm + attention + mlp + 2 * (F_ + D))


def test_the_chunked_head_saves_what_all_logits_take():
    shape, run = PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"], Forward(2, 4096, "bfloat16", checkpointing=True)
    assert full_logits_bytes(shape, run) - head_bytes(shape, run) == 10 * (2 * 4096 - chunk_of(126464)) * 126464
    few = Forward(1, 64, "bfloat16")
    assert full_logits_bytes(shape, few) == head_bytes(shape, few), "one chunk holds them all"


def test_the_mask_of_blocks_follows_the_back_end_and_the_packing():
    """FlexAttention stores none; packed sequences may be longer than rows."""
    kept = {}
    for name, changes in {"plain": {}, "packed": {"packing": True}, "flex": {"attention": "flex_attention"}}.items():
        settings = TrainSettings(model="tiny", data={"train": "synthetic"}, block_size=4, out="x", **changes)
        kept[name] = _forward(settings, known_shape("tiny"), Layout()).mask_bytes
    assert kept["plain"] > 0
    assert kept["packed"] == 1.5 * kept["plain"]
    assert kept["flex"] == 0
