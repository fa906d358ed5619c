"""Tokens per second of decoding against the published algorithm as peers run it. Target: at least 2 times.

A random model of 4 layers x 256 with LLaDA's vocabulary, 8 prompts of unequal length, 32 new tokens in blocks of 8,
one token a model call: full logits at every position and a softmax over all of them, rows padded to the longest
prompt, no row ever leaves. Twice: with an end token that never comes (what wasted logits alone give), and with one that
ends the rows after different lengths, as answers do (early stopping as well). Tokens are counted up to the end
token for both, and are the same for both.
"""

from __future__ import annotations

import time

import torch
from common import save

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

VOCABULARY, MASK, END = 126_464, 126_336, 126_081
OPTIONS = DecodingOptions(length=32, steps=32, block=8)
LENGTHS = (48, 61, 35, 80, 52, 44, 71, 58)


class Scripted(TinyMDM):
    """The end token wins from a given place of each completion on, so that rows end after known lengths."""

    ends: torch.Tensor | None = None

    def forward(self, input_ids, attention_mask=None, selected=None, targets=None, **rest):
        out = super().forward(input_ids, attention_mask, selected, targets, **rest)
        if self.ends is not None:
            place = torch.arange(input_ids.shape[1])[None] >= self.ends[input_ids[:, 0]][:, None]
            if selected is None:
                out.logits[..., END] += 1e4 * place
            else:
                out.logits[:, END] += 1e4 * place[selected]
        return out


@torch.no_grad()
def peers(model, prompts: list[list[int]], options: DecodingOptions) -> list[list[int]]:
    """The same algorithm for a batch without any saving; rows keep their own positions."""
    starts = torch.tensor([len(p) for p in prompts])
    width = int(starts.max()) + options.length
    ids = torch.full((len(prompts), width), END)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
        ids[i, len(prompt) : len(prompt) + options.length] = MASK
    place = torch.arange(width)[None] - starts[:, None]
    attention = place < options.length
    for step in range(options.steps):
        low = step // (options.steps // options.blocks) * options.block
        logits = model(ids, attention).logits
        logits[..., MASK] = -torch.inf
        token = logits.argmax(-1)
        sure = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
        sure[(ids != MASK) | (place < low) | (place >= low + options.block)] = -torch.inf
        best = sure.argmax(1)
        rows = torch.arange(len(ids))
        ids[rows, best] = token[rows, best]
    answers = [ids[i, n : n + options.length].tolist() for i, n in enumerate(starts.tolist())]
    return [a[: a.index(END)] if END in a else a for a in answers]


def main() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
    model = Scripted(TinyMDMConfig(vocab_size=VOCABULARY, mask_token_id=MASK, initializer_range=0.05, **shape)).eval()
    model.head.weight.data[END] = 0
    generator = torch.Generator().manual_seed(1)
    # The first token of a prompt tells the scripted model which row it is.
    prompts = [[i, *torch.randint(100, 90_000, (n - 1,), generator=generator).tolist()] for i, n in enumerate(LENGTHS)]
    answers = torch.tensor([5, 12, 9, 31, 14, 7, 20, 10])
    ratios, seconds, calls = {}, {}, {}
    for name, ends in (("wasted logits", None), ("and early stopping", torch.tensor(LENGTHS) + answers)):
        model.ends = ends
        stats, start = DecodingStats(), time.perf_counter()
        ours = generate(model, prompts, OPTIONS, mask_id=MASK, eos_id=END, pad_id=END, stats=stats)
        middle = time.perf_counter()
        plain = peers(model, prompts, OPTIONS)
        end = time.perf_counter()
        if ours != plain:
            raise SystemExit(f"{name}: the two do not decode the same tokens")
        tokens = sum(map(len, ours))
        seconds[name] = {"ours": middle - start, "baseline": end - middle, "tokens": tokens}
        calls[name] = stats.as_dict()
        ratios[f"tokens per second, {name}"] = (end - middle) / (middle - start)
    save(
        "decoding", ratios, batch=len(prompts), vocabulary=VOCABULARY, prompts=LENGTHS, **shape,
        options=OPTIONS.__dict__, threads=torch.get_num_threads(), seconds=seconds, stats=calls,
    )  # fmt: skip


if __name__ == "__main__":
    main()
