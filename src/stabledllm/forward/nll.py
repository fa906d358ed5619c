"""The forward pass of one draw of noise through a model: rows packed or padded, all views at once or some of them.

Legend: B rows, K views, L positions, N forward rows, S masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stabledllm.forward.packing import Packing
from stabledllm.noise.methods import Draw


def forward_nll(
    model,
    batch: Mapping[str, Tensor],
    draw: Draw,
    mask_id: int,
    *,
    weights: Tensor | None = None,
    form: Mapping[str, Tensor] | None = None,
    packing: bool = False,
) -> tuple[Tensor, int]:
    """The cross-entropies in nats at the masked positions of the active views, row-major, shape (S,); and N.

    The values are the same with and without packing.

    Args:
        batch: ``input_ids`` and ``attention_mask``, each (B, L).
        form: further arguments of the model, (B, L).
        weights: the factor of each cross-entropy in the loss, up to a common one, shape (S,); a hint for the loss head.
        packing: lay the rows end to end in bins about as long as the longest row. A model in blocks, whose ``form``
            has ``block_ids``, does so itself, as the masks decide which blocks of the noisy row it takes.

    >>> from types import SimpleNamespace
    >>> def model(ids, attention_mask, *, selected, targets):  # says that every token has the probability 1 / e
    ...     return SimpleNamespace(nll=torch.ones(int(selected.sum())))
    >>> batch = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.tensor([[True, True]])}
    >>> one = torch.ones(1)
    >>> draw = Draw(one, one, torch.tensor([[[False, True]]]), torch.ones(1, 1, 2), torch.tensor([[True]]))
    >>> forward_nll(model, batch, draw, mask_id=0)
    (tensor([1.]), 1)
    """
    noisy, mask, source = draw.noisy(batch["input_ids"], mask_id)
    forwards = len(noisy)
    if not forwards:  # layers take no empty batch, and the model runs wherever that of another rank does
        noisy, source = batch["input_ids"][:1], torch.zeros(1, dtype=torch.long, device=mask.device)
        mask = torch.zeros_like(noisy, dtype=torch.bool)
    attention, targets = batch["attention_mask"][source], batch["input_ids"][source]
    if not packing or "block_ids" in (form or {}):
        further = {name: value[source] for name, value in (form or {}).items()}
        if packing:
            further["packed"] = True
        if weights is not None:
            further["nll_weights"] = weights
        return model(noisy, attention, selected=mask, targets=targets, **further).nll, forwards
    bins = Packing.of(attention)
    selected = bins.pack(mask, False)
    rank = bins.row_major(selected)
    nll = model(
        bins.pack(noisy, 0),
        bins.real,
        selected=selected,
        targets=bins.pack(targets, 0),
        segment_ids=bins.segment_ids,
        position_ids=bins.position_ids,
        nll_weights=None if weights is None else weights[rank],
    ).nll
    return nll[rank.argsort()], forwards


def view_groups(views: int, at_once: int | None) -> list[range]:
    """The views of each forward pass: all of them, or ``at_once`` at a time.

    >>> view_groups(3, at_once=2)
    [range(0, 2), range(2, 3)]
    """
    step = at_once or views
    return [range(start, min(start + step, views)) for start in range(0, views, step)]


def only(active: Tensor, views: range) -> Tensor:
    """``active`` with every view outside ``views`` switched off, bool, shape (B, K).

    >>> only(torch.tensor([[True, True, False]]), range(1, 3))
    tensor([[False,  True, False]])
    """
    chosen = torch.zeros(active.shape[1], dtype=torch.bool, device=active.device)
    chosen[views.start : views.stop] = True
    return active & chosen
