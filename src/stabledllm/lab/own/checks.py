"""Checks that a model of one's own does what the measurements assume; a few short forwards.

Legend: N rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.data.rows import collate
from stabledllm.data.token_rows import TokenRow, lengths_of
from stabledllm.errors import UserError
from stabledllm.lab.own.model import OwnModel
from stabledllm.models.evaluating import evaluating

_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far cross-entropies that should be equal may lie apart, over 1 plus the largest, by the logits' type; or 0.05."""


class ShortRows:
    """The shortest and the longest row, all of their maskable tokens masked: what a model is tried on."""

    def __init__(self, model: OwnModel, rows: Sequence[TokenRow], mask_id: int, pad_id: int):
        lengths = lengths_of(rows)
        self.lengths = list(dict.fromkeys((min(lengths), max(lengths))))
        device = next(model.parameters()).device
        batch = collate([rows[lengths.index(size)] for size in self.lengths], pad_id)
        self.batch = {name: value.to(device) for name, value in batch.items()}
        self.ids = torch.where(self.batch["maskable"], mask_id, self.batch["input_ids"])
        self.model = model

    @torch.no_grad()
    def losses(self, count: int = 2, length: int | None = None) -> Tensor:
        """The cross-entropies of the first rows, cut to a length, at their masked tokens."""
        names = "attention_mask", "maskable", "input_ids"
        mask, selected, targets = (self.batch[name][:count, :length] for name in names)
        with evaluating(self.model):
            return self.model(self.ids[:count, :length], mask, selected=selected, targets=targets).nll

    def state(self) -> tuple[float, ...]:
        """Numbers that are others once the model has been trained further."""
        return tuple(self.losses().tolist())


@torch.no_grad()
def check_own_model(short: ShortRows, rows: Sequence[TokenRow]) -> list[str]:
    """Check shape, vocabulary, finite logits, that nothing is drawn at random, and that padding is not seen.

    Returns:
        sentences on what is allowed but surprising: a model that sees only the tokens before a position.

    Raises:
        UserError: one of the checks failed, in one sentence.
    """
    model, ids, mask = short.model, short.ids, short.batch["attention_mask"]
    with evaluating(model):
        logits = _first(model, ids, mask)
    _check_vocabulary(logits, rows)
    whole = short.losses()
    if not bool(whole.isfinite().all()):
        raise UserError("model_fn: expected finite cross-entropies, found NaN or infinity on masked rows.")
    allowed = _SAME.get(logits.dtype, 0.05) * (1 + float(whole.abs().max()))
    if not _equal(short.losses(), whole, allowed):
        raise UserError(
            "model_fn: expected the same logits for the same ids, found others at the second call; is dropout on? "
            "Put the model into evaluation mode with model.eval()."
        )
    alone = short.losses(1, short.lengths[0])
    if len(short.lengths) > 1 and not _equal(alone, whole[: len(alone)], allowed):
        raise UserError(
            "model_fn: expected logits that do not depend on the padding beside a row, found that they do; use the "
            "attention_mask (False at padding), or pass rows of one length."
        )
    with evaluating(model):
        return _direction(model, ids[-1:], mask[-1:], logits[-1:])


def _first(model: OwnModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The logits of the first call, at which a model_fn of the wrong form fails."""
    try:
        return model.logits(ids, mask)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"model_fn: expected a function of (input_ids, attention_mask), int64 and bool of shape (rows, length), "
            f"found that it fails: {type(error).__name__}: {reason}"
        ) from error


def _check_vocabulary(logits: Tensor, rows: Sequence[TokenRow]) -> None:
    for i, row in enumerate(rows):
        response = row.input_ids[row.prompt_length : len(row) - row.tail]
        if (largest := max(response)) >= logits.shape[-1]:
            raise UserError(
                f"row {i}: expected ids below {logits.shape[-1]}, as many as there are logits, found {largest}."
            )


def _equal(one: Tensor, other: Tensor, allowed: float) -> bool:
    return float((one - other).abs().max()) <= allowed


def _direction(model: OwnModel, ids: Tensor, mask: Tensor, logits: Tensor) -> list[str]:
    """A sentence where a change of the last token is seen nowhere before it, and one of the first is seen after it."""
    if ids.shape[1] < 2:
        return []

    def seen(place: int) -> Tensor:
        changed = ids.clone()
        changed[0, place] = 0 if ids[0, place] != 0 else 1
        return (model.logits(changed, mask) != logits).any(-1)[0]

    if bool(seen(ids.shape[1] - 1)[:-1].any()) or not bool(seen(0)[1:].any()):
        return []
    return [
        "model_fn sees the tokens before a position only (causal attention): the masked tokens are predicted without "
        "what follows them, and the noise measured is that of such a model."
    ]
