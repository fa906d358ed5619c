"""Makes the weights that ship as ``--model tiny``: pretraining on easy problems.

    python scripts/pretrain_tiny.py --out src/stabledllm/assets/tiny

Low-discrepancy t and fixed counts (both unbiased) steady it; half of the rows get a random number
of supervised end tokens, so that the model does not read the answer's length off the mask.
Problems have 1 to 3 steps with operands up to 9, a tenth of them 4 steps (fine-tuning: operands up to 19).
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from stabledllm.loss import reduce_loss, row_losses
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.tasks.synthetic import Difficulty, example

METHOD = Method.parse("lowdisc+fixedcount")
LEVELS = [Difficulty(1, 3)] * 9 + [Difficulty(4, 4)]


def encode(tokenizer: ByteTokenizer, index: int, seed: int) -> tuple[list[int], int]:
    rng = random.Random(f"pretrain/{seed}/{index}")
    row = example("train", seed, index, rng.choice(LEVELS))
    prompt = tokenizer.chat([{"role": "user", "content": row["prompt"]}])
    tail = 1 + (rng.randint(1, 12) if rng.random() < 0.5 else 0)
    return prompt + tokenizer.encode(row["response"]) + [tokenizer.eos_token_id] * tail, len(prompt)


def batches(batch: int, seed: int):
    """Batches of near-equal length: 8 batches are drawn, sorted by length, dealt in random order."""
    tokenizer, index = ByteTokenizer(), 0
    while True:
        pool = sorted((encode(tokenizer, index + i, seed) for i in range(8 * batch)), key=lambda r: len(r[0]))
        index += 8 * batch
        chunks = [pool[i : i + batch] for i in range(0, len(pool), batch)]
        random.Random(index).shuffle(chunks)
        for chunk in chunks:
            length = -(-max(len(ids) for ids, _ in chunk) // 8) * 8
            ids = torch.full((batch, length), tokenizer.pad_token_id)
            maskable = torch.zeros(batch, length, dtype=torch.bool)
            attention = torch.zeros(batch, length, dtype=torch.bool)
            for row, (tokens, prompt) in enumerate(chunk):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                maskable[row, prompt : len(tokens)] = True
                attention[row, : len(tokens)] = True
            yield ids, attention, maskable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch._dynamo.config.recompile_limit = 64
    shape = {"hidden_size": args.width, "num_hidden_layers": args.layers, "intermediate_size": 3 * args.width}
    model = TinyMDM(TinyMDMConfig(**shape))
    for block in model.blocks:
        block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    decay = max(1, args.steps // 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 200, max(0.02, (args.steps - s) / decay))
    )
    started, shown = time.time(), []
    for step, (ids, attention, maskable) in zip(range(args.steps), batches(args.batch, args.seed), strict=False):
        rows = Rows(torch.arange(len(ids)), len(ids), maskable, torch.arange(ids.shape[1]))
        draw = METHOD.draw(Key(args.seed, step), rows, METHOD.sampler())
        noisy, mask, source = draw.noisy(ids, model.config.mask_token_id)
        nll = model(noisy, attention[source], mask, ids[source]).nll
        losses = row_losses(nll, draw.mask, draw.coefficient, draw.active)
        loss = reduce_loss(losses, METHOD.objective.row_weight(maskable), len(ids))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        shown.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {sum(shown) / len(shown):.4f} {time.time() - started:.0f} s", flush=True)
            shown = []
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            args.out.mkdir(parents=True, exist_ok=True)
            model.config.save_pretrained(args.out)
            half = {k: v.half().contiguous() for k, v in model.state_dict().items()}
            from safetensors.torch import save_file

            save_file(half, args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
