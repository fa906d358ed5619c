"""What drawing a step's noise costs, as a share of the whole training step of the tiny model. Target: under 0.02.

The baseline is that step itself (draw, forward, loss, backward, optimizer) in the same run; 32 forwards a step.
"""

from __future__ import annotations

import torch
from common import interleaved, save

from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.loss import reduce_loss, row_losses
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key

FORWARDS = 32
METHODS = (
    "standard",
    "ppots",
    "ppots+mirror",
    "strats+ppots+mirror",
    "lowdisc+fixedcount",
    "fixedcount+mirror",
    "isad",
)


def main() -> None:
    loaded = load_model("tiny")
    examples = load_examples("synthetic:hard", split="train", n=FORWARDS, seed=0)
    encoded = encode_examples(examples, loaded.tokenizer, EncodingOptions(pad_response_to=40)).rows
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-5)
    density = Tabulated(torch.linspace(0.5, 2, 4096), name="ppots")
    ratios = {}
    for name in METHODS:
        method = Method.parse(name)
        n = FORWARDS // method.views.count
        batch = collate(encoded[:n], loaded.pad_id)
        rows = Rows(
            torch.arange(n), n, batch["maskable"], torch.arange(batch["input_ids"].shape[1]), batch["delimiter"]
        )
        count = iter(range(1_000_000))

        def draw(method=method, rows=rows, count=count):
            return method.draw(Key(0, next(count)), rows, method.sampler(density))

        def step(draw=draw, batch=batch, n=n):
            drawn = draw()
            noisy, mask, source = drawn.noisy(batch["input_ids"], loaded.mask_id)
            out = loaded.model(
                noisy, batch["attention_mask"][source], selected=mask, targets=batch["input_ids"][source]
            )
            losses = row_losses(out.nll, drawn.mask, drawn.coefficient, drawn.active)
            reduce_loss(losses, torch.ones(n), n).backward()
            optimizer.step()
            optimizer.zero_grad()

        seconds = interleaved({"draw": draw, "step": step}, 30)
        ratios[f"draw / step, {name}"] = seconds["draw"] / seconds["step"]
    save("noise_cost", ratios, forwards=FORWARDS, tokens_per_row=int(batch["input_ids"].shape[1]), repeats=30)


if __name__ == "__main__":
    main()
