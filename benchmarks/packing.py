"""Useful tokens per second on GSM8K's real lengths: padded, grouped by length, packed. Target: packed 1.5 times padded.

    python benchmarks/packing.py PATH/train.jsonl

A training step (draw, forward, loss, backward) of 64 rows in micro-batches of 16, in random order as peers take them; 4
layers x 256, vocabulary 8,192 (a token is four bytes, a stand-in for a subword tokenizer of that size). All four share
the loss head, so that the ratios are of the rows' layout alone. Useful are the rows' own tokens. Tasks are taken in
turns in one run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import interleaved, save

from stabledllm.data.rows import TokenRow, collate
from stabledllm.forward.nll import forward_nll
from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.tasks import gsm8k
from stabledllm.tasks.task import TaskOptions

VOCABULARY, MASK, PAD = 8192, 8191, 8190
SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
STEPS, ROWS, MICRO, REPEATS = 2, 64, 16, 5


def tokens(text: str) -> list[int]:
    raw = text.encode()
    return [hash(raw[i : i + 4]) % 8000 for i in range(0, len(raw), 4)]


def main(path: Path) -> None:
    torch.manual_seed(0)
    model = TinyMDM(TinyMDMConfig(vocab_size=VOCABULARY, mask_token_id=MASK, **SHAPE))
    examples = gsm8k.TASK.load(str(path), "train", TaskOptions())
    chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1))[: STEPS * ROWS].tolist()
    rows = []
    for i in chosen:
        prompt, response = (tokens(turn["content"]) for turn in examples[i]["messages"])
        rows.append(TokenRow([*prompt, *response, PAD], len(prompt)))
    useful, objective = sum(len(row) for row in rows), Objective()

    def train(order: list[TokenRow], packing: bool) -> None:
        for start in range(0, len(order), MICRO):
            batch = collate(order[start : start + MICRO], PAD)
            n = len(batch["input_ids"])
            drawn = Rows(torch.arange(n), n, batch["maskable"], torch.arange(batch["input_ids"].shape[1]))
            draw = Method.parse("lowdisc", objective=objective).draw(Key(0, start), drawn, Uniform())
            hint = nll_weights(draw.mask, draw.coefficient, draw.active, torch.ones(n, dtype=torch.float64))
            nll, _ = forward_nll(model, batch, draw, MASK, weights=hint, packing=packing)
            losses = row_losses(nll, draw.mask, draw.coefficient, draw.active)
            reduce_loss(losses, torch.ones(n), ROWS).backward()
        model.zero_grad()

    steps = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    grouped = [row for step in steps for row in sorted(step, key=len, reverse=True)]
    tasks = {
        "padded": lambda: train(rows, False),
        "grouped": lambda: train(grouped, False),
        "packed": lambda: train(rows, True),
        "grouped and packed": lambda: train(grouped, True),
    }
    seconds = interleaved(tasks, REPEATS)
    lengths = sorted(len(row) for row in rows)
    save(
        "packing",
        {f"useful tokens per second, {name}": seconds["padded"] / seconds[name] for name in list(tasks)[1:]},
        data="GSM8K train, real lengths", rows=len(rows), micro_batch=MICRO, rows_per_step=ROWS, **SHAPE,
        vocabulary=VOCABULARY, threads=torch.get_num_threads(), seconds=seconds,
        tokens_per_second={name: useful / s for name, s in seconds.items()},
        lengths={"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
    )  # fmt: skip


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data/gsm8k/train.jsonl")
    if not given.is_file():
        raise SystemExit(f"packing: expected GSM8K's train.jsonl at {given}, found none; skipped")
    main(given)
