"""Time of a mixture of experts against a plain loop over the experts, on CPU. Target: at most 1/3 with 64 experts.

One forward and backward pass of a layer's experts as LLaDA-MoE has them, 64 of which each token takes 8, narrower than
published and in float32. The loop is the usual one: per expert, find its tokens, run it, add its outputs to all
tokens'. Times are taken in turns.
"""

from __future__ import annotations

import torch
from common import interleaved, save
from torch import Tensor

from stabledllm.models.families.experts import Experts

EXPERTS, CHOSEN = 64, 8
SHAPES = {"narrow": (256, 128, 1024), "wide": (512, 256, 2048)}
"""Width, hidden width of an expert, and tokens."""
REPEATS = 7


def looped(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    out_TD = torch.zeros_like(x_TD)
    for number, expert in enumerate(experts):
        token, place = (chosen_TK == number).nonzero(as_tuple=True)
        out_TD = out_TD.index_add(0, token, expert(x_TD[token]) * share_TK[token, place, None])
    return out_TD


def main() -> None:
    torch.set_num_threads(1)
    ratios = {}
    for name, (width, hidden, tokens) in SHAPES.items():
        torch.manual_seed(0)
        experts = Experts(EXPERTS, width, hidden)
        x = torch.randn(tokens, width, requires_grad=True)
        share, chosen = torch.randn(tokens, EXPERTS).softmax(-1).topk(CHOSEN)

        def step(run) -> Tensor:
            experts.zero_grad()
            out = run(x, chosen, share)
            (out**2).sum().backward()
            return out.detach()

        def in_segments(*args) -> Tensor:
            experts.grouped = lambda _: None
            try:
                return experts(*args)
            finally:
                del experts.grouped

        tasks = {
            "loop": lambda: step(lambda *args: looped(experts, *args)),
            "grouped": lambda: step(experts),
            "segments": lambda: step(in_segments),
        }
        torch.testing.assert_close(tasks["grouped"](), tasks["loop"](), rtol=1e-4, atol=1e-5)
        assert experts.grouped(x)
        seconds = interleaved(tasks, REPEATS)
        for way in ("grouped", "segments"):
            ratios[f"{way}_{name}"] = seconds[way] / seconds["loop"]
    save("experts", ratios, experts=EXPERTS, chosen=CHOSEN, shapes=SHAPES, repeats=REPEATS)


if __name__ == "__main__":
    main()
