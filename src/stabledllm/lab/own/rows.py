"""Rows of one's own in any of the usual forms, as token rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabledllm.data.token_rows import RowsBuilder, TokenRow, TokenRows
from stabledllm.errors import UserError

_LARGEST = 2**31 - 1
_FORMS = (
    "a TokenRow, a pair (ids, prompt_length), or a dictionary with 'input_ids' and 'prompt_length' (or 'labels', -100 "
    "at the prompt)"
)


def own_rows(rows: object, mask_id: int, prompt_length: int | Tensor | Sequence[int] | None = None) -> TokenRows:
    """The rows, each checked.

    Args:
        rows: a tensor (B, L) beside ``prompt_length`` (one number or one per row), or a sequence whose items are token
            rows, pairs ``(ids, prompt_length)`` or dictionaries with ``input_ids`` and ``prompt_length`` or ``labels``.
            An ``attention_mask`` in a dictionary says where its padding is.

    Raises:
        UserError: no rows, or one that is wrong, with its index.

    >>> own_rows([([5, 6, 7], 1)], mask_id=9)[0].response_length
    2
    >>> own_rows([([5, 6, 7], 3)], mask_id=9)
    Traceback (most recent call last):
    stabledllm.errors.UserError: row 0: expected a prompt_length from 0 to 2, found 3: no token is left to mask.
    """
    if isinstance(rows, TokenRow | Mapping | str | bytes) or not isinstance(rows, Iterable):
        raise UserError(f"rows: expected a sequence of rows, found {type(rows).__name__}; each is {_FORMS}.")
    built = RowsBuilder()
    for i, row in enumerate(_paired(rows, prompt_length)):
        built.add(_checked(row, i, mask_id))
    if not len(built):
        raise UserError("rows: expected at least one row, found none.")
    return built.rows()


def _paired(rows: Iterable, prompt_length: int | Tensor | Sequence[int] | None) -> Iterable:
    """The rows, with the prompt lengths that were given beside them."""
    if prompt_length is None:
        if isinstance(rows, Tensor | np.ndarray):
            raise UserError("rows: expected prompt_length beside a tensor of ids, found none.")
        return rows
    rows = list(rows)
    each = prompt_length.tolist() if isinstance(prompt_length, Tensor | np.ndarray) else prompt_length
    each = list(each) if isinstance(each, Sequence) else [each] * len(rows)
    if len(each) != len(rows):
        raise UserError(f"prompt_length: expected one number or one for each of {len(rows)} rows, found {len(each)}.")
    for i, row in enumerate(rows):
        if not _is_ids(row):
            raise UserError(f"row {i}: expected the ids of a row beside prompt_length, found {type(row).__name__}.")
    return zip(rows, each, strict=True)


def _is_ids(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str))


def _checked(row: Any, i: int, mask_id: int) -> TokenRow:
    if isinstance(row, TokenRow):
        ids, prompt = _ids_of(row.input_ids, i), row.prompt_length
        made = row
    else:
        ids, prompt = _parts_of(row, i)
        made = None
    if not _is_whole(prompt) or not 0 <= prompt < len(ids):
        raise UserError(
            f"row {i}: expected a prompt_length from 0 to {len(ids) - 1}, found {prompt!r}: no token is left to mask."
            if _is_whole(prompt)
            else f"row {i}: expected a whole number as prompt_length, found {prompt!r}."
        )
    if made is not None and made.response_length < 1:
        raise UserError(f"row {i}: expected at least one token to mask, found none.")
    if mask_id in ids:
        raise UserError(
            f"row {i}: expected clean ids, found the mask token {mask_id} at place {ids.index(mask_id)}; noise is "
            f"drawn here, rows come without it."
        )
    return made or TokenRow(ids, int(prompt), origin=f"row {i}")


def _parts_of(row: Any, i: int) -> tuple[list[int], Any]:
    if isinstance(row, Mapping):
        return _of_mapping(row, i)
    if isinstance(row, tuple | list) and len(row) == 2 and _is_ids(row[0]):
        prompt = row[1]
        return _ids_of(row[0], i), prompt.item() if isinstance(prompt, Tensor) and prompt.numel() == 1 else prompt
    raise UserError(f"row {i}: expected {_FORMS}, found {_said(row)}.")


def _of_mapping(row: Mapping, i: int) -> tuple[list[int], Any]:
    if "input_ids" not in row:
        raise UserError(f"row {i}: expected the key 'input_ids', found {sorted(map(str, row))}.")
    ids = _ids_of(row["input_ids"], i)
    labels = None if row.get("labels") is None else _numbers(row["labels"], i, "labels")
    real = [True] * len(ids)
    if row.get("attention_mask") is not None:
        real = [bool(x) for x in _numbers(row["attention_mask"], i, "attention_mask")]
    for name, values in (("labels", labels), ("attention_mask", real)):
        if values is not None and len(values) != len(ids):
            raise UserError(f"row {i}: expected as many {name} as ids, {len(ids)}, found {len(values)}.")
    before = next((place for place, one in enumerate(real) if one), len(ids))
    ids = [one for one, keep in zip(ids, real, strict=True) if keep]
    prompt = row.get("prompt_length", row.get("prompt_len"))
    if prompt is not None:
        return ids, prompt.item() if isinstance(prompt, Tensor) and prompt.numel() == 1 else prompt
    if labels is None:
        raise UserError(f"row {i}: expected the key 'prompt_length' or 'labels', found {sorted(map(str, row))}.")
    labels = [one for one, keep in zip(labels, real, strict=True) if keep]
    prompt = next((place for place, one in enumerate(labels) if one != -100), len(ids))
    if -100 in labels[prompt:]:
        place = labels.index(-100, prompt) + before
        raise UserError(
            f"row {i}: expected labels that are -100 at the prompt alone, found -100 at place {place}, after the "
            f"response began."
        )
    return ids, prompt


def _ids_of(value: Any, i: int) -> list[int]:
    ids = _numbers(value, i, "ids")
    if not ids:
        raise UserError(f"row {i}: expected at least one token, found none.")
    if not 0 <= min(ids) <= max(ids) <= _LARGEST:
        wrong = next(one for one in ids if not 0 <= one <= _LARGEST)
        raise UserError(f"row {i}: expected ids from 0 to 2**31 - 1, found {wrong}.")
    return ids


def _numbers(value: Any, i: int, what: str) -> list[int]:
    """A flat list of whole numbers."""
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value)
        if array.dim() == 2 and len(array) == 1:
            array = array[0]
        if array.dim() != 1 or array.is_floating_point():
            kind = str(array.dtype).removeprefix("torch.")
            raise UserError(
                f"row {i}: expected {what} of one dimension, whole numbers, found {kind} {tuple(array.shape)}."
            )
        return array.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"row {i}: expected a list or tensor of {what}, found {_said(value)}.")
    for place, one in enumerate(value):
        if not _is_whole(one) and not isinstance(one, bool):
            raise UserError(f"row {i}: expected {what} that are whole numbers, found {_said(one)} at place {place}.")
    return [int(one) for one in value]


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _said(value: object) -> str:
    text = repr(value)
    return text if isinstance(value, int | float | str) and len(text) <= 40 else type(value).__name__
