"""What adaptive P-POTS adds to a training step, as a share of that step of the tiny model. Target: under 0.01.

The baseline is the step without it (draw, forward, loss, backward, optimizer) in the same run; 32 rows a step. What is
added: taking in a step's losses, and a refit every 25 steps, shared out over them.
"""

from __future__ import annotations

import torch
from common import interleaved, save

from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.loss import reduce_loss, row_losses
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.ppots.adaptive import AdaptiveDensity, AdaptiveOptions

ROWS = 32


def main() -> None:
    loaded, objective, method = load_model("tiny"), Objective(), Method.parse("lowdisc+adaptive+fixedcount")
    examples = load_examples("synthetic:hard", split="train", n=ROWS, seed=0)
    batch = collate(
        encode_examples(examples, loaded.tokenizer, EncodingOptions(pad_response_to=40)).rows, loaded.pad_id
    )
    rows = Rows(torch.arange(ROWS), ROWS, batch["maskable"], torch.arange(batch["input_ids"].shape[1]))
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-5)
    adaptive = AdaptiveDensity(AdaptiveOptions(), shared_noise=False, cost=method.views.cost, eps=objective.eps)
    last: list[tuple[torch.Tensor, ...]] = []

    def step():
        drawn = method.draw(Key(0, adaptive.steps), rows, adaptive.sampler())
        noisy, mask, source = drawn.noisy(batch["input_ids"], loaded.mask_id)
        out = loaded.model(noisy, batch["attention_mask"][source], selected=mask, targets=batch["input_ids"][source])
        losses = row_losses(out.nll, drawn.mask, drawn.coefficient, drawn.active)
        reduce_loss(losses, torch.ones(ROWS), ROWS).backward()
        optimizer.step()
        optimizer.zero_grad()
        last[:] = [(drawn.t, drawn.weight, losses.detach().double())]

    def adapt():
        for _ in range(adaptive.options.every):
            adaptive.update(*last[0])

    step()
    seconds = interleaved({"step": step, "adapt": adapt}, 30)
    share = seconds["adapt"] / adaptive.options.every / seconds["step"]
    save("adaptive_cost", {"adaptive / step": share}, rows=ROWS, every=adaptive.options.every, repeats=30)


if __name__ == "__main__":
    main()
