"""The native families side by side, each as a small random checkpoint in its hub's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stabledllm.models.loading import load_model
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_mmada
from tests.models.families.published import converted_logits, dream_logits, llada_logits, llada_moe_logits
from tests.models.families.published_blocks import fast_dllm_logits, sdar_logits


@dataclass(frozen=True)
class Case:
    write: callable
    published: callable
    config: dict

    def checkpoint(self, folder: Path, **kwargs) -> Path:
        return self.write(folder, config=self.config, **kwargs)


MIXED = {
    "moe_layer_freq": [0, 1],
    "shared_expert_intermediate_size": 16,
    "moe_router_enable_expert_bias": True,
    "num_key_value_heads": 2,
    "model_type": "lladamoe",
}
GROUPED = {"n_kv_heads": 2}
CASES = {
    "llada": Case(write_llada, llada_logits, {}),
    "llada-grouped": Case(write_llada, llada_logits, GROUPED),
    "llada-tied": Case(write_llada, llada_logits, {"weight_tying": True}),
    "mmada": Case(write_mmada, llada_logits, {}),
    "dream": Case(write_dream, dream_logits, {}),
    "llada-moe": Case(write_llada_moe, llada_moe_logits, {}),
    "llada-moe-mixed": Case(write_llada_moe, llada_moe_logits, MIXED),
    "a2d-llama": Case(partial(write_a2d, original="llama"), converted_logits, {}),
    "a2d-qwen2": Case(partial(write_a2d, original="qwen2"), converted_logits, {}),
    "a2d-qwen3": Case(write_a2d, converted_logits, {}),
    "sdar": Case(write_sdar, sdar_logits, {}),
    "sdar-tied": Case(write_sdar, sdar_logits, {"tie_word_embeddings": True, "block_size": 8, "mask_token_id": 259}),
    "fast-dllm": Case(write_fast_dllm, fast_dllm_logits, {}),
    "fast-dllm-7b": Case(write_fast_dllm, fast_dllm_logits, {"tie_word_embeddings": False}),
}


def stored(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder's files."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def random_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    """Bytes and mask tokens."""
    return torch.randint(0, 262, (rows, length), generator=torch.Generator().manual_seed(seed))


def load(folder: Path, **kwargs):
    return load_model(str(folder), **kwargs).model.eval()
