"""Small whole models of every family, and ways to damage their files; every random choice is a seed's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_llama, write_mmada, write_qwen2
from tests.models.families.test_masked_lm import write as write_masked_lm


def write_tiny(folder: Path) -> Path:
    config = TinyMDMConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    TinyMDM(config).save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    write_masked_lm(folder, "bert")
    return folder


WRITE: dict[str, Callable[[Path], Path]] = {
    "tiny": write_tiny,
    "llada": write_llada,
    "llada-sharded": lambda folder: write_llada(folder, shards=3),
    "mmada": write_mmada,
    "dream": write_dream,
    "llada-moe": write_llada_moe,
    "a2d": write_a2d,
    "sdar": write_sdar,
    "fast-dllm": write_fast_dllm,
    "bert": write_bert,
    "qwen2": write_qwen2,
    "llama": write_llama,
}
VALUES = (
    *(None, True, False, 0, 1, -1, 3, 2.5, 1e30, -1e-3, 10**6, 10**12, 10**30, float("nan"), float("inf")),
    *("", "x", "nan", "../x", "a/b", [], {}, [1], {"a": 1}, [[[[]]]]),
)


def damage_json(path: Path, seed: int) -> str:
    """Change, drop or add a key, or the bytes; what was done."""
    rng = random.Random(seed)
    content = path.read_bytes()
    if rng.random() < 0.25:
        return damage_bytes(path, seed)
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        key = rng.choice(sorted(tree)) if tree else "x"
        if rng.random() < 0.15:
            tree.pop(key, None)
            done = f"without {key}"
        else:
            tree[key] = rng.choice(VALUES)
            done = f"{key} = {tree[key]!r}"
    path.write_text(json.dumps(tree))
    return f"{path.name}: {done}"


def damage_bytes(path: Path, seed: int) -> str:
    """Cut the file, or change some of its bytes, mostly at its beginning."""
    rng = random.Random(seed)
    content = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "empty", "bytes", "bytes", "bytes", "longer"))
    if kind == "cut":
        content = content[: rng.randrange(len(content))]
    elif kind == "empty":
        content = bytearray()
    elif kind == "longer":
        content += bytes(rng.randrange(256) for _ in range(9))
    else:
        reach = len(content) if rng.random() < 0.3 else min(len(content), 400)
        for _ in range(rng.choice((1, 1, 3, 20))):
            content[rng.randrange(reach)] = rng.randrange(256)
    path.write_bytes(bytes(content))
    return f"{path.name}: {kind}"
