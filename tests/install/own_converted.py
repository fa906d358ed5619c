"""What dllm does with a converted model, in transformers 4; ``test_converted.py`` runs it in an environment of its own.

Arguments: folders with ``out``, the converted model, and ``expected.safetensors``, logits by this library: of a causal
run and of full attention. Prints the largest difference of each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

BASES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def registered(name: str) -> type:
    """dllm's way: the base's classes under another model_type."""
    config, model = BASES[name]
    config = type(f"A2D{name}Config", (config,), {"model_type": f"a2d-{name}"})
    AutoConfig.register(config.model_type, config)
    return type(f"A2D{name}LMHeadModel", (model,), {"config_class": config})


for folder in map(Path, sys.argv[1:]):
    kind, expected = registered(folder.name), load_file(folder / "expected.safetensors")
    model, info = kind.from_pretrained(folder / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    ids, everything = expected["ids"], torch.zeros(2, 1, *2 * expected["ids"].shape[1:])
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    assert tokenizer.mask_token == "<|mask|>"
    assert tokenizer("a<|mask|>b")["input_ids"] == [97, model.config.mask_token_id, 98]
    with torch.no_grad():
        for name, logits in (("causal", model.eval()(ids)), ("full", model(ids, attention_mask=everything))):
            print(folder.name, name, float((logits.logits - expected[name]).abs().max()))
