"""Step time and peak memory of the loss head against full logits. Targets: 0.45 of the time, 0.25 of the memory.

A body of 4 layers x 512 with LLaDA's vocabulary, rows of 1,024 of which half are response; one forward and backward of
two rows. The baseline does what peers do: logits [B, L, V] in float32, cross-entropy at every position, times a 0/1
mask, Bernoulli masks, padded rows. Peak memory is the most bytes of tensors alive at once (seen by a dispatch mode),
above weights and their gradients; time is taken without it, in turns.
"""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F
from common import interleaved, save
from gpu_device import AliveBytes

from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

VOCABULARY, MASK = 126_464, 126_336
SHAPE = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1536}
ROWS, LENGTH = 2, 1024
REPEATS = 5


def main() -> None:
    torch.manual_seed(0)
    model = TinyMDM(TinyMDMConfig(vocab_size=VOCABULARY, mask_token_id=MASK, **SHAPE))
    ids = torch.randint(0, 100_000, (ROWS, LENGTH))
    maskable = torch.arange(LENGTH)[None].expand(ROWS, -1) >= LENGTH // 2
    objective, weight, count = Objective(), torch.ones(ROWS, dtype=torch.float64), iter(range(10**6))
    rows = Rows(torch.arange(ROWS), ROWS, maskable, torch.arange(LENGTH))

    def drawn():
        # Strata of t, so that both see about half of the response masked in every step.
        draw = Method.parse("lowdisc", objective=objective).draw(Key(0, next(count) // 2), rows, Uniform())
        return draw, *draw.noisy(ids, MASK)

    def ours() -> None:
        draw, noisy, mask, source = drawn()
        hint = nll_weights(draw.mask, draw.coefficient, draw.active, weight)
        nll = model(noisy, selected=mask, targets=ids[source], nll_weights=hint).nll
        reduce_loss(row_losses(nll, draw.mask, draw.coefficient, draw.active), weight, ROWS).backward()

    def baseline() -> None:
        draw, noisy, mask, source = drawn()
        logits = model(noisy).logits.float()
        each = F.cross_entropy(logits.view(-1, VOCABULARY), ids[source].view(-1), reduction="none").view_as(ids)
        (each * draw.coefficient[:, 0] * mask).sum().div(ROWS).backward()

    tasks, peak = {"ours": ours, "baseline": baseline}, {}
    for name, task in tasks.items():
        task()
        gc.collect()
        kept = {p: p.grad for p in model.parameters()}
        for p in kept:
            p.grad = None
        del kept
        with AliveBytes() as seen:
            task()
        gradients = sum(p.grad.untyped_storage().nbytes() for p in model.parameters())
        peak[name] = seen.peak - gradients
        model.zero_grad()
    seconds = interleaved(tasks, REPEATS)
    save(
        "loss_head",
        {"time": seconds["ours"] / seconds["baseline"], "peak_memory": peak["ours"] / peak["baseline"]},
        rows=ROWS, length=LENGTH, response=LENGTH // 2, vocabulary=VOCABULARY, **SHAPE, repeats=REPEATS,
        threads=torch.get_num_threads(), seconds=seconds, peak_bytes_above_weights_and_gradients=peak,
    )  # fmt: skip


if __name__ == "__main__":
    main()
