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
"""How far two logits may lie apart that should be equal, by their type, over 1 plus the largest one; else 0.05."""


@torch.no_grad()
def check_own_model(model: OwnModel, rows: Sequence[TokenRow], mask_id: int, pad_id: int) -> list[str]:
    """Check shape, vocabulary, finite logits, that nothing is drawn at random, and that padding is not seen.

    Returns:
        sentences on what is allowed but surprising: a model that sees only the tokens before a position.

    Raises:
        UserError: one of the checks failed, in one sentence.
    """
    lengths = lengths_of(rows)
    chosen = [rows[lengths.index(size)] for size in dict.fromkeys((min(lengths), max(lengths)))]
    batch = collate(chosen, pad_id)
    device = next(model.parameters()).device
    ids = torch.where(batch["maskable"], mask_id, batch["input_ids"]).to(device)
    mask = batch["attention_mask"].to(device)
    with evaluating(model):
        logits = _first(model, ids, mask)
        _check_vocabulary(logits, rows)
        real = logits[mask]
        if not bool(real.isfinite().all()):
            raise UserError("model_fn: expected finite logits, found NaN or infinity on masked rows.")
        if not _equal(model.logits(ids, mask)[mask], real):
            raise UserError(
                "model_fn: expected the same logits for the same ids, found others at the second call; is dropout on? "
                "Put the model into evaluation mode with model.eval()."
            )
        short = len(chosen[0])
        if len(chosen) > 1 and not _equal(model.logits(ids[:1, :short], mask[:1, :short]), logits[:1, :short]):
            raise UserError(
                "model_fn: expected logits that do not depend on the padding beside a row, found that they do; use the "
                "attention_mask (False at padding), or pass rows of one length."
            )
        return _direction(model, ids[-1:], mask[-1:], logits[-1:], mask_id)


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


def _equal(one: Tensor, other: Tensor) -> bool:
    wide = other.double()
    allowed = _SAME.get(other.dtype, 0.05) * (1 + float(wide.abs().max()))
    return float((one.double() - wide).abs().max()) <= allowed


def _direction(model: OwnModel, ids: Tensor, mask: Tensor, logits: Tensor, mask_id: int) -> list[str]:
    """A sentence where a change of the last token is seen nowhere before it, and one of the first is seen after it."""
    if ids.shape[1] < 2:
        return []

    def seen(place: int) -> Tensor:
        changed = ids.clone()
        changed[0, place] = 0 if ids[0, place] != 0 else 1
        return (model.logits(changed, mask) - logits).abs().amax(-1)[0] > 0

    if bool(seen(ids.shape[1] - 1)[:-1].any()) or not bool(seen(0)[1:].any()):
        return []
    return [
        "model_fn sees the tokens before a position only (causal attention): the masked tokens are predicted without "
        "what follows them, and the noise measured is that of such a model."
    ]
