"""Small runs in which nothing stands out but the rows and draws that are put in on purpose.

Every response is as many digits drawn at random, of which a model can learn no more than that they are digits: rows and
steps are much alike, and whatever makes a gradient norm jump has been put there.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import torch

from stabledllm.data.rows import TokenRow, collate
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key, Stream
from tests.fakes import tiny
from tests.fakes.run import train

BATCH, STEPS, RESPONSE, PROMPT, SPOILT = 4, 16, 120, 4, 2
"""Rows of a step, steps of a run, tokens of a response and of a prompt, and a spoilt row's position in its step."""
CPU = {"use_cpu": True}


def nonsense(row: TokenRow) -> list[int]:
    """The answer replaced by a letter, again and again."""
    return [*row.input_ids[:PROMPT], *[ord("z")] * RESPONSE]


def one_token(row: TokenRow) -> list[int]:
    """The answer cut behind its first token."""
    return list(row.input_ids[: PROMPT + 1])


@cache
def sound_rows(n: int = BATCH * STEPS) -> list[TokenRow]:
    digits = random.Random(1)
    return [TokenRow([48 + digits.randrange(10) for _ in range(PROMPT + RESPONSE)], PROMPT) for _ in range(n)]


def write_rows(path: Path, rows: list[list[int]]) -> str:
    path.write_text("".join(json.dumps({"input_ids": ids, "prompt_length": PROMPT}) + "\n" for ids in rows))
    return f"jsonl:{path}"


def base(folder: Path) -> str:
    """A model that has learnt that responses are digits."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.model(32, layers=1).float().save_pretrained(folder / "new")
    given = {
        "model": str(folder / "new"),
        "data": {
            "train": write_rows(folder / "rows.jsonl", [r.input_ids for r in sound_rows()]),
            "validation_share": 0,
        },
        "batch": BATCH,
        "steps": 60,
        "log_every": 30,
        "trainer": CPU | {"learning_rate": 2e-2},
        "out": str(folder / "base"),
    }
    train(given)
    return str(folder / "base" / "model")


def order_of(seed: int) -> list[int]:
    """The rows in the order in which a run of that seed takes them."""
    return Key(seed, 0).permutation(Stream.DATA, BATCH * STEPS, torch.device("cpu")).tolist()


def settings(folder: Path, model: str, spoilt: dict[int, object], seed: int, **change) -> dict:
    """Settings of a run in ``folder / "run"`` on rows of which one of each of some steps is spoilt.

    Args:
        spoilt: for a step, what makes the ids of its spoilt row of a sound one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = order_of(seed)
    spoils = {order[(step - 1) * BATCH + SPOILT]: spoil for step, spoil in spoilt.items()}
    rows = [spoils[i](row) if i in spoils else list(row.input_ids) for i, row in enumerate(sound_rows())]
    return {
        "model": model,
        "data": {"train": write_rows(folder / "rows.jsonl", rows), "validation_share": 0},
        "batch": BATCH,
        "steps": STEPS,
        "save_every": 10,
        "log_every": 1,
        "seed": seed,
        "spikes": {"factor": 2.5},
        "trainer": CPU | {"learning_rate": 1e-4},
        "out": str(folder / "run"),
    } | change


def weights_of(seed: int, step: int, block: int | None = None) -> torch.Tensor:
    """The largest weight of each row's masked tokens (in blocks: of each block's) in a step of Standard, sorted."""
    weights, _ = drawn(seed, step, block)
    return weights.sort(descending=True).values


def drawn(seed: int, step: int, block: int | None = None, method: str = "standard") -> tuple[torch.Tensor, ...]:
    """The largest weight and the number of each row's masked tokens (in blocks: of each block's) in a step."""
    rows = [sound_rows()[number] for number in order_of(seed)[(step - 1) * BATCH : step * BATCH]]
    maskable = collate(rows, 257)["maskable"]
    noise = Rows(torch.arange(BATCH), BATCH, maskable, torch.arange(maskable.shape[1]))
    method, key = Method.parse(method), Key(seed, step - 1)
    if block:
        each = RESPONSE // block
        units = Units.of(noise, Blocks(block), torch.arange(BATCH) * each, BATCH * each)
        draw, size = units.draw(method, key, method.sampler()).drawn, block
    else:
        draw, size = method.draw(key, noise, method.sampler()), RESPONSE
    mask = draw.mask[:, 0]
    return (draw.coefficient[:, 0] * size * mask).amax(1), mask.sum(1)


def spoilt_weight(seed: int, step: int) -> float:
    """The weight of the single token of a spoilt row in a step of Standard; 0 where it is not masked."""
    maskable = torch.zeros(BATCH, PROMPT + 1, dtype=torch.bool)
    maskable[:, -1] = True
    method = Method.parse("standard")
    noise = Rows(torch.arange(BATCH), BATCH, maskable, torch.arange(PROMPT + 1))
    draw = method.draw(Key(seed, step - 1), noise, method.sampler())
    return float((draw.coefficient[SPOILT, 0] * draw.mask[SPOILT, 0]).max())
