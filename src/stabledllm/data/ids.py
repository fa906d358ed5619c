"""Checks for token ids that no row may hold: ids outside the vocabulary, the mask token, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stabledllm.errors import UserError

_LARGEST = 2**31 - 1
"""Rows are held in 32 bits; no vocabulary is larger."""


def ids_of(value: Any, origin: str) -> list[int]:
    """The list of token ids that a row of a file holds.

    Raises:
        UserError: a value that is no list, or a number that can be no id; the message gives its place.
    """
    if not isinstance(value, list):
        raise UserError(f"{origin}: expected a list of token ids under 'input_ids', found {type(value).__name__}.")
    if set(map(type, value)) - {int} or (value and not 0 <= min(value) <= max(value) <= _LARGEST):
        place, wrong = next((i, x) for i, x in enumerate(value) if type(x) is not int or not 0 <= x <= _LARGEST)
        found = repr(wrong) if len(repr(wrong)) <= 30 else f"{repr(wrong)[:27]}..."
        raise UserError(
            f"{origin}: expected token ids, integers of at least 0 and below 2**31, under 'input_ids', found {found} "
            f"at place {place}."
        )
    return value


def refuse_ids(ids: Sequence[int], tokenizer, origin: str) -> None:
    """Refuse a row or a prompt that holds an id which does not belong there.

    The mask token would be a target that the model must never write, or look like a position to fill. A token that
    only pads rows would be trained on; one that also ends texts is allowed.

    Raises:
        UserError: naming the row, the id and its place.
    """
    if not len(ids):
        return
    import numpy as np  # here, as rows of files are checked where no array package is loaded

    array = np.asarray(ids)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= tokenizer.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{origin}: expected token ids below {tokenizer.vocab_size}, found {wrong}.")
    for name, token in (("mask", tokenizer.mask_token_id), ("padding", tokenizer.padding_id)):
        if token is not None and (at := np.flatnonzero(array == token)).size:
            hint = " (where it ends texts, say so with end_token)" if name == "padding" else ""
            raise UserError(
                f"{origin}: expected no {name} token within the row, found its id {token} at place {int(at[0])}{hint}."
            )
