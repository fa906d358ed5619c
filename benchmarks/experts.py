"""Time of a mixture of experts against a plain loop over the experts, on one core. Target: 1/3 where experts are small.

One forward and backward pass of 64 experts of which each token takes 8, in float32. The loop is the usual one: per
expert, find its tokens, run it, add its outputs to all tokens'. ``small`` is a small random checkpoint on two rows of
32 tokens; in ``middle`` and ``large`` multiplying takes most of the time, of which both do equally much. Times are of
this process on the processor, so that other work on the machine does not count; the ways are taken in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from common import save
from torch import Tensor

from stabledllm.models.families.experts import Experts

EXPERTS, CHOSEN = 64, 8
SHAPES = {"small": (32, 24, 64), "middle": (64, 32, 256), "large": (256, 128, 1024)}
"""Width, hidden width of an expert, and tokens."""
REPEATS = 15


def looped(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    out_TD = torch.zeros_like(x_TD)
    for number, expert in enumerate(experts):
        token, place = (chosen_TK == number).nonzero(as_tuple=True)
        out_TD = out_TD.index_add(0, token, expert(x_TD[token]) * share_TK[token, place, None])
    return out_TD


def in_segments(experts: Experts, *args: Tensor) -> Tensor:
    experts.grouped = lambda _: None
    try:
        return experts(*args)
    finally:
        del experts.grouped


WAYS = {"loop": looped, "grouped": Experts.__call__, "segments": in_segments}


def measured(width: int, hidden: int, tokens: int) -> dict[str, float]:
    """Median seconds of each way."""
    torch.manual_seed(0)
    experts = Experts(EXPERTS, width, hidden)
    x, weights = torch.randn(tokens, width, requires_grad=True), list(experts.parameters())
    share, chosen = torch.randn(tokens, EXPERTS).softmax(-1).topk(CHOSEN)
    assert experts.grouped(x)

    def step(way: Callable[..., Tensor]) -> Tensor:
        out = way(experts, x, chosen, share)
        torch.autograd.grad((out**2).sum(), [x, *weights])
        return out.detach()

    for way in WAYS.values():
        torch.testing.assert_close(step(way), step(looped), rtol=1e-4, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(REPEATS):
        for name, way in WAYS.items():
            start = time.process_time()
            step(way)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    ratios = {}
    for name, sizes in SHAPES.items():
        seconds = measured(*sizes)
        ratios |= {f"{way}_{name}": seconds[way] / seconds["loop"] for way in ("grouped", "segments")}
    save("experts", ratios, experts=EXPERTS, chosen=CHOSEN, shapes=SHAPES, repeats=REPEATS)


if __name__ == "__main__":
    main()
