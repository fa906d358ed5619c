"""Choosing a token from logits, and scoring how sure the model is of it.

Legend: S masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.decoding.options import DecodingOptions
from stabledllm.runtime.finite import require_finite

_LAST = -1e30
"""Score of what is decided after everything else; finite, since what is not masked has -inf."""


def choose(
    logits: Tensor, options: DecodingOptions, uniforms: Tensor, last: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Tokens (S,) and scores (S,); the higher the score, the earlier a token is decided (not in order ``random``).

    Dream scores probabilities after temperature and top_p, LLaDA those before (``schedule`` tells them apart).

    Args:
        logits: shape (S, V), -inf for tokens never chosen. uniforms: shape (S,), used where tokens are drawn.
        last: tokens that are decided after all others; the others are scored as if there were none of these.

    Raises:
        NotFinite: logits that give no probabilities.
    """
    drawn = logits / options.temperature if options.temperature > 0 else logits
    if options.top_p < 1:
        drawn = nucleus(drawn, options.top_p)
    law = drawn.softmax(-1)
    token = draw(law, uniforms) if options.temperature > 0 else law.argmax(-1)
    require_finite(law, "decoding: probabilities of tokens")
    scored = drawn if options.schedule != "even" else logits
    if last:
        ends = torch.tensor(list(last), device=logits.device)
        others = scored.index_fill(1, ends, -torch.inf).softmax(-1)
        return token, _score(others, token, options.order).masked_fill(torch.isin(token, ends), _LAST)
    plain = law if scored is drawn else scored.softmax(-1)
    return token, _score(plain, token, options.order)


def draw(law: Tensor, uniforms: Tensor) -> Tensor:
    """One token drawn from each row of probabilities by inverting their cumulative sum; shape (S,).

    A token of probability 0 is never drawn.

    Args:
        law: probabilities, shape (S, V). uniforms: in (0, 1), shape (S,).
    """
    cumulated = law.double().cumsum(-1)
    token = torch.searchsorted(cumulated, (uniforms * cumulated[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=law.shape[1] - 1)


def _score(law: Tensor, token: Tensor, order: str) -> Tensor:
    if order == "margin":
        top = law.topk(2, dim=-1).values
        return top[:, 0] - top[:, 1]
    if order == "entropy":
        return torch.special.xlogy(law, law).sum(-1)
    return law.gather(1, token[:, None])[:, 0]


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The logits, -inf for all but the fewest tokens that hold ``top_p`` (Holtzman et al., arXiv:1904.09751)."""
    ordered, index = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    cut = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, before > top_p)
    return logits.masked_fill(cut, -torch.inf)
