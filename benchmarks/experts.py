"""Time of a mixture of experts against the published loops over the experts, on one core. Target: 1/3.

One forward and backward pass of 64 experts of which each token takes 8, weights, tokens and shares with gradients. The
loops are those of the original code: ``masked``, LLaDA2's in training (a mask of the choices selects an expert's
tokens, its outputs are assigned in place), and ``where``, LLaDA-MoE's (one-hot choices, ``torch.where``, each expert's
outputs added to all tokens'). ``bound`` is the time of the matrix products alone, one expert after another: no way
takes less, and where it is most of the loop's time nothing is three times as fast. ``adapters``: low-rank matrices of
rank 16 on all three layers of every expert, trained beside frozen weights, against peft's layers in the loop ``where``.

Times are of this process on the processor, so that other work on the machine does not count; ways are taken in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from common import save
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from stabledllm.models.families.experts import Experts, join_experts

EXPERTS, CHOSEN = 64, 8
SHAPES = {"small": (32, 24, 64), "middle": (64, 32, 256), "step": (64, 32, 2048), "large": (256, 128, 1024)}
"""Width, hidden width of an expert, and tokens: two rows of a small random checkpoint, a step of 2,048 tokens."""
REPEATS = 9


def masked(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    x_SD, chosen_S = x_TD.repeat_interleave(CHOSEN, dim=0), chosen_TK.flatten()
    out_SD = torch.empty_like(x_SD)
    for number, expert in enumerate(experts):
        own = chosen_S == number
        out_SD[own] = expert(x_SD[own])
    return (out_SD.view(*chosen_TK.shape, -1) * share_TK[..., None]).sum(1)


def where(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    out_TD = torch.zeros_like(x_TD)
    chosen_EKT = torch.nn.functional.one_hot(chosen_TK, len(experts)).permute(2, 1, 0)
    for number, expert in enumerate(experts):
        place, token = torch.where(chosen_EKT[number])
        out_TD.index_add_(0, token, expert(x_TD[token]) * share_TK[token, place, None])
    return out_TD


def in_segments(experts: Experts, *args: Tensor) -> Tensor:
    experts.grouped = lambda _: None
    try:
        return experts(*args)
    finally:
        del experts.grouped


WAYS = {"masked": masked, "where": where, "ours": Experts.__call__, "segments": in_segments}


def products(width: int, hidden: int, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of a forward and backward pass, with equally many tokens for each expert."""
    own = tokens * CHOSEN // EXPERTS
    sizes = ((2 * hidden, width), (width, hidden), (own, width), (own, 2 * hidden), (own, hidden))
    operands = [[torch.randn(size, dtype=dtype) for size in sizes] for _ in range(EXPERTS)]

    @torch.no_grad()
    def run() -> None:
        for first, second, x, gate_up, inner in operands:
            x @ first.T, inner @ second.T  # forward
            gate_up @ first, gate_up.T @ x, x @ second, x.T @ inner  # backward

    return run


def measured(width: int, hidden: int, tokens: int, dtype: torch.dtype, *, adapters: bool) -> dict[str, float]:
    """Median seconds of each way."""
    torch.manual_seed(0)
    experts = Experts(EXPERTS, width, hidden).to(dtype)
    if adapters:
        inject_adapter_in_model(LoraConfig(r=16, target_modules=["gate_proj", "up_proj", "down_proj"]), experts)
        join_experts(experts)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    share, chosen = torch.randn(tokens, EXPERTS).softmax(-1).topk(CHOSEN)
    share = share.to(dtype).requires_grad_()

    def step(way: Callable[..., Tensor]) -> Tensor:
        out = way(experts, x, chosen, share)
        (out**2).sum().backward()
        return out.detach()

    tasks = {name: lambda way=way: step(way) for name, way in WAYS.items()}
    if not adapters:
        tasks["bound"] = products(width, hidden, tokens, dtype)
    if dtype == torch.float32:
        for way in WAYS.values():
            torch.testing.assert_close(step(way), step(where), rtol=1e-4, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(REPEATS + 1):
        for name, task in tasks.items():
            experts.zero_grad()
            x.grad = share.grad = None
            start = time.process_time()
            task()
            if repeat:  # the first warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    ratios = {}
    for name, sizes in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            seconds = measured(*sizes, dtype, adapters=False)
            case = name if dtype == torch.float32 else f"{name}_bfloat16"
            for loop in ("masked", "where"):
                ratios |= {f"{way}_of_{loop}_{case}": seconds[way] / seconds[loop] for way in ("ours", "bound")}
            ratios[f"segments_of_where_{case}"] = seconds["segments"] / seconds["where"]
        seconds = measured(*sizes, torch.float32, adapters=True)
        ratios[f"ours_of_where_{name}_adapters"] = seconds["ours"] / seconds["where"]
    save("experts", ratios, experts=EXPERTS, chosen=CHOSEN, shapes=SHAPES, repeats=REPEATS)


if __name__ == "__main__":
    main()
