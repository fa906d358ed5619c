"""The law of the completions of a decoder, by listing every token that each of its steps may draw; a few tokens only.

Written from the descriptions of the decoders, with none of the library's decoding.
"""

from __future__ import annotations

import itertools
import math

import torch

from tests.decoding.references import guided_logits, sureness

LAST = 1e-3


def completions_law(
    model, prompt, size, *, mask_id, block, steps, order="confidence", schedule="even", temperature=0.0, guidance=0.0,
    threshold=None, entropy_bound=None, ends=(), trained_in_blocks=False,
) -> dict[tuple[int, ...], float]:  # fmt: skip
    """The probability of every completion of ``size`` tokens, in blocks of ``steps`` steps each.

    Positions are chosen as by greedy decoding, or at a temperature as there; the tokens of a step are drawn
    independently of each other.
    """
    start = torch.tensor([*prompt, *[mask_id] * size])
    law: dict[tuple[int, ...], float] = {}
    states = {tuple(start.tolist()): 1.0}
    n = len(prompt)
    for at in range(n, n + size, block):
        own = range(at, min(at + block, n + size))
        for step in range(steps):
            after: dict[tuple[int, ...], float] = {}
            for state, weight in states.items():
                x = torch.tensor(state)
                places = [i for i in own if state[i] == mask_id]
                if not places:
                    after[state] = after.get(state, 0.0) + weight
                    continue
                logits = _logits(model, x, n, mask_id, guidance, own.stop if trained_in_blocks else None, block)
                rule = (logits / temperature if temperature and schedule != "even" else logits).softmax(-1)
                drawn = (logits / temperature if temperature else logits).softmax(-1)
                chosen = _chosen(rule, places, _count(schedule, block, steps, step, len(places)), order,
                                 threshold, entropy_bound, logits, ends)  # fmt: skip
                for tokens in itertools.product(range(logits.shape[-1]), repeat=len(chosen)):
                    p = math.prod(float(drawn[i, v]) for i, v in zip(chosen, tokens, strict=True))
                    if p == 0:
                        continue
                    new = list(state)
                    for i, v in zip(chosen, tokens, strict=True):
                        new[i] = v
                    after[tuple(new)] = after.get(tuple(new), 0.0) + weight * p
            states = after
    for state, weight in states.items():
        law[state[n:]] = weight
    return law


def _logits(model, x, n, mask_id, guidance, stop, block):
    if stop is None:
        return guided_logits(model, x, n, mask_id, guidance)
    seen = x[None, :stop]
    ids = torch.tensor([[0] * n + [1 + i // block for i in range(stop - n)]])
    with torch.no_grad():
        logits = model(seen, torch.ones_like(seen, dtype=torch.bool), block_ids=ids).logits[0].clone()
    logits[:, mask_id] = -torch.inf
    return logits


def _count(schedule, block, steps, step, left):
    if schedule == "even":
        return min(left, block // steps + (step < block % steps))
    if step == steps - 1:
        return left
    t, s = (1 - (1 - LAST) * i / steps for i in (step, step + 1))
    return int(left * (1 - s / t))


def _chosen(law, places, number, order, threshold, entropy_bound, logits, ends):
    best = {i: int(logits[i].argmax()) for i in places}
    if order == "sequential":
        sure = {i: -i for i in places}
    else:
        others = logits.clone()
        if ends:
            others[:, list(ends)] = -torch.inf
            law = others.softmax(-1)
        sure = {i: -1e9 if best[i] in ends else sureness(law[i], order) for i in places}
    if threshold is not None:
        number = max(number, sum(sure[i] > threshold for i in places))
    ordered = sorted(places, key=lambda i: -sure[i])
    if entropy_bound is not None:
        sums = itertools.accumulate(-sure[i] for i in ordered)
        number = max(number, sum(total < entropy_bound for total in sums))
    return ordered[:number]
