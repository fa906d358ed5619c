"""The published decoding loops of models in blocks, plainly: one prompt at a time, no cache, no padding, no early stop.

Written from their descriptions (SDAR, arXiv:2510.06303; Fast-dLLM v2, arXiv:2509.26328; LLaDA2.0). Blocks are counted
from the row's first token; the last one is decoded whole and the answer cut. Confidence is the probability of the
chosen token before any cut of the distribution; the mask token is never chosen.

``logits(ids)`` gives (L, V), [i] for the token at place i, of a row that ends with a block.
"""

from __future__ import annotations

import torch

from tests.decoding.references import cut_to_nucleus


def space(prompt: list[int], length: int, size: int, mask_id: int) -> list[int]:
    """The prompt and mask tokens up to the end of the last block."""
    total = -(-(len(prompt) + length) // size) * size
    return [*prompt, *[mask_id] * (total - len(prompt))]


def candidates(logits, ids: list[int], places, mask_id: int, drawn=None, top_p: float = 1.0):
    """For each masked place among ``places``: its token, that token's probability, and the entropy, all uncut."""
    scores = logits(ids)
    scores[:, mask_id] = -torch.inf
    found = {}
    for i in places:
        if ids[i] == mask_id:
            law = scores[i].softmax(-1)
            token = int(law.argmax()) if drawn is None else inverse(cut_to_nucleus(law, top_p), float(drawn[i]))
            found[i] = token, float(law[token]), -float((law[law > 0] * law[law > 0].log()).sum())
    return found


def inverse(law: torch.Tensor, uniform: float) -> int:
    return int((law.cumsum(0) < uniform * law.sum()).sum())


def sdar(
    logits, prompt, *, length, size, steps, mask_id, strategy, threshold=None, bound=None, uniforms=None, top_p=1.0
):
    """``low_confidence_static``, ``low_confidence_dynamic``, ``sequential`` and ``entropy_bounded``; ``steps`` a block.

    Args:
        uniforms: of a call, for each place of the row; None: greedy.
    """
    ids, n = space(prompt, length, size, mask_id), len(prompt)
    for number, start in enumerate(range(n // size * size, len(ids), size)):
        for step in range(steps):
            count = size // steps + (step < size % steps)
            drawn = None if uniforms is None else uniforms(number * steps + step, len(ids))
            found = candidates(logits, ids[: start + size], range(start, start + size), mask_id, drawn, top_p)
            surest = sorted(found, key=lambda i: -found[i][1])
            if strategy == "dynamic":
                above = [i for i in found if found[i][1] > threshold]
                chosen = above if len(above) >= count else surest[:count]
            elif strategy == "sequential":
                chosen = sorted(found)[:count]
            elif strategy == "entropy_bounded":
                chosen, spent = [], 0.0
                for i in sorted(found, key=lambda i: found[i][2]):
                    spent += found[i][2]
                    if chosen and spent >= bound:
                        break
                    chosen.append(i)
            else:
                chosen = surest[:count]
            for i in chosen:
                ids[i] = found[i][0]
    return ids[n : n + length]


def llada2(logits, prompt, *, length, size, steps, mask_id, threshold):
    """Everything surer than the threshold, or the schedule's number of surest ones where these are fewer."""
    ids, n = space(prompt, length, size, mask_id), len(prompt)
    schedule = [size // steps + (step < size % steps) for step in range(steps)]
    for end in range((n // size + 1) * size, len(ids) + 1, size):
        for number in schedule:
            found = candidates(logits, ids[:end], range(end - size, end), mask_id)
            above = sum(sure > threshold for _, sure, _ in found.values())
            for i in sorted(found, key=lambda i: -found[i][1])[: max(number, above)]:
                ids[i] = found[i][0]
    return ids[n : n + length]


def fast_dllm(logits, prompt, *, length, size, sub_block, mask_id, threshold):
    """The block's first token is the most probable one after the clean block before it; then sub-block by sub-block."""
    ids, n = space(prompt, length, size, mask_id), len(prompt)
    for start in range(n // size * size, len(ids), size):
        if start and ids[start] == mask_id:
            found = candidates(logits, ids[: start + size], [start], mask_id)
            ids[start] = found[start][0]
        for first in range(start, start + size, sub_block):
            while mask_id in ids[first : first + sub_block]:
                found = candidates(logits, ids[: start + size], range(first, first + sub_block), mask_id)
                best = max(found, key=lambda i: found[i][1])
                for i, (token, sure, _) in found.items():
                    if sure > threshold or i == best:
                        ids[i] = token
    return ids[n : n + length]
