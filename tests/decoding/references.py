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


def llada(
    model, prompt, *, length, steps, block, mask_id, order="confidence", guidance=0.0, uniforms=None, never=(), last=()
):
    """Low-confidence or random remasking in semi-autoregressive blocks. ``uniforms(step)``: (length,).

    ``never``: tokens whose logits are -inf; ``last``: those whose logits are so once tokens are chosen, as LLaDA's
    ``logits_eos_inf`` and ``confidence_eos_eot_inf`` do at temperature 0.
    """
    x = torch.tensor([*prompt, *[mask_id] * length])
    blocks, n = length // block, len(prompt)
    each, rest = divmod(block, steps // blocks)
    for step in range(steps):
        b, within = divmod(step, steps // blocks)
        logits = guided_logits(model, x, n, mask_id, guidance)
        logits[:, list(never)] = -torch.inf
        token = logits.argmax(-1)
        logits[:, list(last)] = -torch.inf
        law = logits.softmax(-1)
        places = [i for i in range(n + b * block, n + (b + 1) * block) if x[i] == mask_id]
        if order == "random":
            first = {i: -float(uniforms(step)[i - n]) for i in places}
        elif order == "confidence":
            first = {i: float(law[i, token[i]]) for i in places}
        else:
            first = {i: sureness(law[i], order) for i in places}
        for i in sorted(places, key=lambda i: -first[i])[: each + (within < rest)]:
            x[i] = token[i]
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


class Frozen:
    """Keys and values of some positions as they were when last recorded, put in the projections' place.

    ``projections``: pairs of a module and the column from which on its output is keys or values. Every position goes
    through the model at every call: nothing is spared.
    """

    def __init__(self, model, projections):
        self.model, self.projections, self.kept = model, projections, {}

    @torch.no_grad()
    def logits(self, x: torch.Tensor, fresh: torch.Tensor | None) -> torch.Tensor:
        """(L, V); ``fresh``, bool (L,): positions with keys and values of this call; None: all, and record them."""
        hooks = [module.register_forward_hook(self._hook(column, fresh)) for module, column in self.projections]
        try:
            return self.model(x[None]).logits[0].clone()
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, column: int, fresh: torch.Tensor | None):
        def replace(module, inputs, output):
            if fresh is None:
                self.kept[module] = output[..., column:].clone()
                return output
            mixed = torch.where(fresh[None, :, None], output[..., column:], self.kept[module])
            return torch.cat((output[..., :column], mixed), dim=-1)

        return replace


def cached(model, projections, prompt, *, length, steps, block, mask_id, cache, guidance=0.0, threshold=1.0, shift=0):
    """LLaDA's with keys and values kept within a block (Fast-dLLM, arXiv:2505.22618, section 3.2).

    At a block's start everything is computed and recorded; later in the block only the block's positions
    (``prefix``: those behind it too) have keys and values of their own. ``shift`` 1: the position before as well.
    """
    x, n, blocks = torch.tensor([*prompt, *[mask_id] * length]), len(prompt), length // block
    each, rest = divmod(block, steps // blocks)
    for b in range(blocks):
        low, high = n + b * block, n + (b + 1) * block
        fresh = torch.zeros(len(x), dtype=torch.bool)
        fresh[low - shift : len(x) if cache == "prefix" else high] = True
        sighted, unsighted = Frozen(model, projections), Frozen(model, projections)
        for step in range(steps // blocks):
            places = [i for i in range(low, high) if x[i] == mask_id]
            if not places:
                continue
            own = None if step == 0 else fresh
            logits = sighted.logits(x, own)
            if guidance:
                blind = x.clone()
                blind[:n] = mask_id
                without = unsighted.logits(blind, own)
                logits = without + (guidance + 1) * (logits - without)
            logits[:, mask_id] = -torch.inf
            law = logits.softmax(-1)
            above = sum(float(law[i].max()) > threshold for i in places)
            ordered = sorted(places, key=lambda i: -float(law[i].max()))
            for i in ordered[: max(each + (step < rest), above)]:
                x[i] = law[i].argmax()
    return x[n:].tolist()
