"""The published decoding algorithms, plainly: one prompt at a time, full logits everywhere, no early stop, no padding.

Written from their descriptions (LLaDA, arXiv:2502.09992, Algorithms 4 and 5; Dream, arXiv:2508.15487 and its
``diffusion_generate``). Greedy; what is drawn at random is handed in.
"""

from __future__ import annotations

import torch

EPS = 1e-3


@torch.no_grad()
def guided_logits(model, x: torch.Tensor, prompt: int, mask_id: int, guidance: float) -> torch.Tensor:
    """Logits of one row, (L, V); with guidance LLaDA's ``un + (s + 1) (cond - un)``."""
    logits = model(x[None]).logits[0].clone()
    if guidance:
        blind = x.clone()
        blind[:prompt] = mask_id
        without = model(blind[None]).logits[0]
        logits = without + (guidance + 1) * (logits - without)
    logits[:, mask_id] = -torch.inf
    return logits


def cut_to_nucleus(law: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities of the most probable tokens up to and with the one that reaches ``top_p``, renormalised."""
    kept, held = torch.zeros_like(law), 0.0
    for token in law.argsort(descending=True).tolist():
        if held > top_p:
            break
        kept[token] = law[token]
        held += float(law[token])
    return kept / kept.sum()


def sureness(law: torch.Tensor, order: str) -> float:
    top = law.sort(descending=True).values
    if order == "margin":
        return float(top[0] - top[1])
    if order == "entropy":
        return float((law[law > 0] * law[law > 0].log()).sum())
    return float(top[0])


def llada(model, prompt, *, length, steps, block, mask_id, order="confidence", guidance=0.0, uniforms=None):
    """Low-confidence or random remasking in semi-autoregressive blocks. ``uniforms(step)``: (length,)."""
    x = torch.tensor([*prompt, *[mask_id] * length])
    blocks, n = length // block, len(prompt)
    each, rest = divmod(block, steps // blocks)
    for step in range(steps):
        b, within = divmod(step, steps // blocks)
        logits = guided_logits(model, x, n, mask_id, guidance)
        law = logits.softmax(-1)
        places = [i for i in range(n + b * block, n + (b + 1) * block) if x[i] == mask_id]
        if order == "random":
            first = {i: -float(uniforms(step)[i - n]) for i in places}
        else:
            first = {i: sureness(law[i], order) for i in places}
        for i in sorted(places, key=lambda i: -first[i])[: each + (within < rest)]:
            x[i] = law[i].argmax()
    return x[n:].tolist()


def dream(model, prompt, *, length, steps, mask_id, algorithm, top_p=1.0, uniforms=None):
    """``diffusion_generate`` with temperature 0. ``uniforms(step)``: (length,), for ``origin``."""
    x = torch.tensor([*prompt, *[mask_id] * length])
    n, times = len(prompt), torch.linspace(1, EPS, steps + 1, dtype=torch.float64).tolist()
    for step in range(steps):
        t, s = times[step], times[step + 1]
        places = [i for i in range(n, n + length) if x[i] == mask_id]
        law = guided_logits(model, x, n, mask_id, 0.0).softmax(-1)
        law = {i: cut_to_nucleus(law[i], top_p) if top_p < 1 else law[i] for i in places}
        last = step == steps - 1
        if algorithm == "origin":
            chosen = [i for i in places if last or float(uniforms(step)[i - n]) < 1 - s / t]
        else:
            order = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}[algorithm]
            number = len(places) if last else int(len(places) * (1 - s / t))
            chosen = sorted(places, key=lambda i: -sureness(law[i], order))[:number]
        for i in chosen:
            x[i] = law[i].argmax()
    return x[n:].tolist()


def parallel(model, prompt, *, length, steps, block, mask_id, threshold):
    """LLaDA's with every token above the threshold decided at once (Fast-dLLM, arXiv:2505.22618); and its calls."""
    x, n, calls = torch.tensor([*prompt, *[mask_id] * length]), len(prompt), 0
    blocks = length // block
    each, rest = divmod(block, steps // blocks)
    for step in range(steps):
        b, within = divmod(step, steps // blocks)
        places = [i for i in range(n + b * block, n + (b + 1) * block) if x[i] == mask_id]
        if not places:
            continue
        calls += 1
        law = guided_logits(model, x, n, mask_id, 0.0).softmax(-1)
        ordered = sorted(places, key=lambda i: -float(law[i].max()))
        above = sum(float(law[i].max()) > threshold for i in places)
        for i in ordered[: max(each + (within < rest), above)]:
            x[i] = law[i].argmax()
    return x[n:].tolist(), calls
