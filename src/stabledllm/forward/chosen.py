"""Draws under an objective that weighs or chooses single tokens; two of the three ask the model for the choice first.

The forward that a choice takes has no gradient and no dropout; it counts in ``Draw.forwards``. Where no row of a batch
asks, one row that counts for nothing goes through the model, as ranks that share its weights must all call it.

Legend: B rows, K views, L positions, P maskable tokens of a row, S masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.forward.nll import forward_nll
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.blocks import BlockDraw
from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import Complement
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.schedule import masked_count
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.takes import check_tokens_in_blocks
from stabledllm.noise.tokens import cart_weights, choice, further_ratio, gift_probabilities, kept, p_given_count

_GRID, _RATIOS = 512, 32
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it fill [0, 1] evenly, in an order that has nothing to do with that of t."""


def chosen(
    draw: Draw,
    method: Method,
    key: Key,
    rows: Rows,
    batch: Mapping[str, Tensor],
    model=None,
    mask_id: int | None = None,
    *,
    packing: bool = False,
) -> Draw:
    """The draw of a method, with the tokens weighed or chosen as its objective says; as it is under ``tokens=all``.

    Everything is a function of the draw, of ``key``, of the positions of the rows and of what the model says of them: a
    step may be split in any way, as far as the model's numbers for a row do not depend on the rows beside it.

    Args:
        batch: ``input_ids`` and ``attention_mask``, each (B, L). model, packing: as in
            :func:`~stabledllm.forward.nll.forward_nll`; ``cart`` needs no model.

    Raises:
        UserError: blocks, in which no such objective is defined.

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.objective import Objective
    >>> method, maskable = Method.parse("standard", objective=Objective(tokens="cart")), torch.ones(1, 3) > 0
    >>> rows, key = Rows(torch.tensor([0]), 1, maskable, torch.arange(3)), Key(0, 0)
    >>> draw = method.draw_at(torch.tensor([1.0]), key, rows, Uniform())
    >>> chosen(draw, method, key, rows, {"attention_mask": maskable}).coefficient.sum()  # nothing is visible
    tensor(0., dtype=torch.float64)
    """
    tokens = method.objective.tokens
    if tokens == "all":
        return draw
    if isinstance(draw, BlockDraw):
        check_tokens_in_blocks(tokens)
    if tokens == "cart":
        visible = batch["attention_mask"].bool()[:, None] & ~draw.mask
        return replace(draw, coefficient=draw.coefficient * cart_weights(visible))
    with torch.no_grad(), evaluating(model) if hasattr(model, "modules") else nullcontext():
        if tokens == "lift":
            return _lifted(draw, method, key, rows, batch, model, mask_id, packing)
        return _gifted(draw, method, key, rows, batch, model, mask_id)


def _lifted(draw: Draw, method: Method, key: Key, rows: Rows, batch, model, mask_id, packing: bool) -> Draw:
    """As many tokens as are masked in each view, but the easiest or hardest of a larger set that holds them."""
    count, maskable = draw.mask.sum(-1), rows.maskable[:, None]
    views = range(count.shape[1])
    position, index = (x.to(count.device) for x in (rows.position, rows.token_index))

    def uniforms(which: int) -> Tensor:  # a number of its own for each view; token uniforms have the first K numbers
        each = [key.row_uniforms(Stream.TOKENS, position, view=which * len(views) + k) for k in views]
        return torch.stack(each, dim=1)

    if method.masker.counted:
        p = p_given_count(count, maskable[:, 0].sum(1), uniforms(1), method.objective)
    else:
        p = method.objective.p_mask(draw.t)[:, None].expand(count.shape)
    side, further = choice(p), further_ratio(p, uniforms(2))
    joins = torch.stack([key.token_uniforms(Stream.TOKENS, position, index, view=k) for k in views], dim=1)
    more = joins < (further / (1 - p).clamp(min=1e-300))[..., None]
    among = (draw.mask | more) & maskable
    asks = draw.active & (side != 0) & (count > 0) & (among.sum(-1) > count)
    asked = replace(draw, mask=among, active=asks)
    values, forwards = forward_nll(model, batch, asked, mask_id, packing=packing)
    used = among & asks[..., None]
    nll = torch.zeros(among.shape, dtype=values.dtype, device=values.device).masked_scatter(used, values)
    mask = torch.where(asks[..., None], kept(nll, among, count, side), draw.mask)
    each = draw.coefficient.amax(-1, keepdim=True)  # the masked tokens of a view have one coefficient
    return replace(draw, mask=mask, coefficient=mask * each, forwards=draw.forwards + forwards)


def _gifted(draw: Draw, method: Method, key: Key, rows: Rows, batch, model, mask_id) -> Draw:
    """Independent masks of the same uniforms, with a probability for each token from the model's own uncertainty."""
    maskable, objective = rows.maskable, method.objective
    noisy = torch.where(maskable, mask_id, batch["input_ids"])
    logits = model(noisy, batch["attention_mask"], selected=maskable).logits
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    each = -(log_p.exp() * log_p).nan_to_num(nan=0.0).sum(-1).double()  # a logit of minus infinity adds nothing
    entropy = torch.zeros(maskable.shape, dtype=torch.float64, device=each.device).masked_scatter(maskable, each)
    p = objective.p_mask(draw.t)
    q = gift_probabilities(entropy, maskable, p)[:, None]
    uniforms = method.views.uniforms(key, rows.position.to(q.device), rows.token_index.to(q.device))
    mask = (uniforms < q) & maskable[:, None]
    row = draw.weight * p**objective.power * objective.scale / maskable.sum(1)
    coefficient = mask * (row[:, None, None] / q.clamp(min=1e-300))
    return replace(draw, mask=mask, coefficient=coefficient, forwards=draw.forwards + len(maskable))


def further_forwards(method: Method, sampler: TSampler, size: Tensor) -> float:
    """The mean number of forwards of a row that choose its tokens, beside those of its views.

    One for ``gift``; for ``lift`` less than one for each view, as nothing is asked where the choice is free or empty.

    Args:
        sampler: the density t is drawn from. size: maskable tokens P of each row of the data, shape (B,).

    >>> from stabledllm.noise.densities import Uniform
    >>> from stabledllm.noise.objective import Objective
    >>> method = Method.parse("mirror", objective=Objective(tokens="lift"))
    >>> round(further_forwards(method, Uniform(), torch.tensor([200])), 2)  # of two views, of a third and 0.9 - 2/3
    1.12
    """
    tokens = method.objective.tokens
    if tokens in ("all", "cart"):
        return 0.0
    if tokens == "gift":
        return 1.0
    t, asked = sampler.icdf(_middle(_GRID)), _asked_of_counts if method.masker.counted else _asked
    sizes = size.unique().tolist()
    return sum(float(asked(method, t, P).mean()) * int((size == P).sum()) for P in sizes) / len(size)


def _asked(method: Method, t: Tensor, P: int) -> Tensor:
    """The mean number of views at each t of which the model is asked, under independent masks, (n,)."""
    p = method.objective.p_mask(t)[:, None]
    rho = further_ratio(p, _middle(_RATIOS)[None])
    # Some token is masked, and some further one: 1 - (1-p)^P - (1-rho)^P + (1-p-rho)^P, the mean over rho.
    some = 1 - (1 - p) ** P - (1 - rho) ** P + (1 - p - rho).clamp(min=0) ** P
    views = method.views.active(t, torch.full(t.shape, P)).sum(1)
    return views * (choice(p[:, 0]) != 0) * some.mean(1)


def _asked_of_counts(method: Method, t: Tensor, P: int) -> Tensor:
    """The same under exact counts, whose masking probability has its law given the count."""
    size = torch.full(t.shape, P)
    active, k = method.views.active(t, size), masked_count(t, size, method.objective.counts)
    count = torch.stack((k, size - k), 1) if isinstance(method.masker, Complement) else k[:, None].expand(active.shape)
    spread = (torch.arange(len(t), dtype=torch.float64) * _GOLDEN % 1)[:, None].expand(count.shape)
    p = p_given_count(count, size, spread, method.objective)
    joins = further_ratio(p[..., None], _middle(_RATIOS)) / (1 - p).clamp(min=1e-300)[..., None]
    some = 1 - (1 - joins) ** (size[:, None] - count)[..., None]
    return (active * (count > 0) * (choice(p) != 0) * some.mean(-1)).sum(1)


def _middle(cells: int) -> Tensor:
    """The middle of each of so many equal cells of [0, 1]."""
    return (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
