"""What key/value caches and a confidence threshold save, and what they cost in accuracy.

Speed: a random model of 6 layers x 512 with LLaDA's vocabulary, 4 prompts of 384 tokens or somewhat less, 128 new
tokens in blocks of 32, 16 calls a block; no row ends early. Seconds against no cache in the same run. The threshold
depends on the model's confidence, so it is timed on the shipped model alone.

Accuracy: the shipped model on its synthetic test problems, easy and hard in halves, one token a call at most; shares
with 95 % Wilson intervals, and what differs from no shortcut on the same problems with its standard error.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from common import save

from stabledllm.data.sources import load_examples
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.evaluation.accuracy import accuracy
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.tasks.scoring import wilson_interval

VOCABULARY, MASK, END = 126_464, 126_336, 126_081
SHAPE = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1536}
SIZES = {"length": 128, "steps": 64, "block": 32}
LENGTHS = (384, 351, 370, 362)
CACHES = ("none", "prefix", "dual")
EACH, ANSWER = 192, {"length": 40, "steps": 40, "block": 8}
SHORTCUTS = {
    "none": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "threshold 0.9": {"threshold": 0.9},
    "threshold 0.7": {"threshold": 0.7},
    "threshold 0.5": {"threshold": 0.5},
    "dual, threshold 0.9": {"cache": "dual", "threshold": 0.9},
}


def speed() -> tuple[dict[str, float], dict[str, dict]]:
    """Seconds without a cache over seconds with one; and the stats of each."""
    torch.manual_seed(0)
    model = TinyMDM(TinyMDMConfig(vocab_size=VOCABULARY, mask_token_id=MASK, **SHAPE)).eval()
    model.head.weight.data[END] = 0
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(100, 90_000, (n,), generator=generator).tolist() for n in LENGTHS]
    stats = {}
    for cache in CACHES:
        stats[cache] = DecodingStats()
        options = DecodingOptions(**SIZES, cache=cache)
        generate(model, prompts, options, mask_id=MASK, eos_id=END, pad_id=END, stats=stats[cache])
    ratios = {f"speed, {cache}": stats["none"].seconds / stats[cache].seconds for cache in CACHES[1:]}
    return ratios, {cache: s.as_dict() for cache, s in stats.items()}


def effect() -> dict[str, dict]:
    """Accuracy, model calls, positions through the model and tokens per second of every shortcut."""
    loaded = load_model("tiny")
    levels = {level: load_examples(f"synthetic:{level}", split="test", n=EACH, seed=0) for level in ("easy", "hard")}
    verdicts, found = {}, {}
    for name, shortcut in SHORTCUTS.items():
        began, stats, correct = time.perf_counter(), DecodingStats(), []
        result = {}
        for level, examples in levels.items():
            scored = accuracy(loaded, examples, DecodingOptions(**ANSWER, **shortcut), 64)
            here = [c["correct"] is True for c in scored.completions]
            result[level] = {"accuracy": sum(here) / len(here), "interval": wilson_interval(sum(here), len(here))}
            correct += here
            for key in ("model_calls", "forward_rows", "forward_positions", "logit_positions", "tokens", "seconds"):
                setattr(stats, key, getattr(stats, key) + getattr(scored.stats, key))
        verdicts[name] = torch.tensor(correct, dtype=torch.float64)
        change = verdicts[name] - verdicts["none"]
        found[name] = result | {
            "accuracy": sum(correct) / len(correct),
            "interval": wilson_interval(sum(correct), len(correct)),
            "change": float(change.mean()),
            "change_stderr": float(change.std()) / len(change) ** 0.5,
            "stats": stats.as_dict(),
        }
        print(f"{name}: {found[name]['accuracy']:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return found


def main() -> None:
    ratios, stats = speed()
    found = effect()
    plain = found["none"]["stats"]
    for name in list(SHORTCUTS)[1:]:
        own = found[name]["stats"]
        ratios[f"shipped model, speed, {name}"] = own["tokens_per_second"] / plain["tokens_per_second"]
        ratios[f"shipped model, model calls, {name}"] = own["model_calls"] / plain["model_calls"]
        ratios[f"shipped model, accuracy change, {name}"] = found[name]["change"]
    save(
        "decoding_shortcuts", ratios, batch=len(LENGTHS), vocabulary=VOCABULARY, prompts=LENGTHS, **SHAPE,
        options=asdict(DecodingOptions(**SIZES)), threads=torch.get_num_threads(), stats=stats,
        problems=2 * EACH, answer=ANSWER, accuracy=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
