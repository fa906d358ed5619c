"""The probe's forward throughput over the model's own raw one. Target: at least 0.85.

Baseline: the model's forward on batches of the same rows, padded and sized alike, with half of the response tokens
selected and no noise to draw, no bookkeeping; both count forward rows a second, in turns, in one run.
"""

from __future__ import annotations

import torch
from common import interleaved, save

from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.profile import probe

ROWS, RATES, MASKS = 16, 24, 4


def main() -> None:
    loaded = load_model("tiny")
    loaded.model.eval()
    examples = load_examples("synthetic:hard", split="train", n=ROWS, seed=0)
    encoded = encode_examples(examples, loaded.tokenizer, EncodingOptions()).rows
    meter = LossMeter(loaded, encoded, Objective())
    profile = probe(meter, Method(), rows=ROWS, rates=RATES, masks=MASKS, seed=0)
    index = profile.rows.repeat_interleave(profile.forward_passes // ROWS)
    batches = []
    for chunk in meter.chunks(index, 1):
        batch = collate([encoded[i] for i in index[chunk].tolist()], loaded.pad_id)
        selected = batch["maskable"] & (torch.rand(batch["maskable"].shape) < 0.5)
        batches.append((batch["input_ids"], batch["attention_mask"], selected))

    @torch.no_grad()
    def raw():
        for ids, attention, selected in batches:
            loaded.model(ids, attention, selected=selected, targets=ids)

    seconds = interleaved(
        {"raw": raw, "probe": lambda: probe(meter, Method(), rows=ROWS, rates=RATES, masks=MASKS, seed=0)}, 7
    )
    save(
        "probe_throughput",
        {"probe / raw throughput": seconds["raw"] / seconds["probe"]},
        forwards=profile.forward_passes,
        tokens_per_batch=meter.tokens_per_batch,
        probe_forwards_per_second=profile.forward_passes / seconds["probe"],
    )


if __name__ == "__main__":
    main()
