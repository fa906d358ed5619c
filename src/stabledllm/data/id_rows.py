"""Rows that are token ids already, with a prompt length or with labels."""

from __future__ import annotations

from stabledllm.data.ids import ids_of
from stabledllm.errors import UserError

_NOT_TRAINED = -100
_LENGTHS = ("prompt_length", "prompt_lengths")
BESIDE_IDS = (*_LENGTHS, "labels", "attention_mask")
"""The keys that are read beside ``input_ids``."""


def from_ids(record: dict, origin: str) -> dict:
    """The example of a row of ``input_ids`` with ``prompt_length``, or with ``labels`` of -100 where a token is given.

    Raises:
        UserError: ids that are none, no response, or labels that are neither -100 nor the ids themselves.
    """
    ids = ids_of(record.get("input_ids"), origin)
    key = next((key for key in _LENGTHS if key in record), None)
    if key is None and "labels" in record:
        return _from_labels(ids, record, origin)
    prompt = record.get(key or _LENGTHS[0])
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise UserError(f"{origin}: expected '{key or _LENGTHS[0]}' in [0, {len(ids)}], found {prompt!r}.")
    if prompt == len(ids):
        raise UserError(f"{origin}: expected at least one response token, found none after the prompt.")
    return {"input_ids": ids, "prompt_length": prompt, "origin": origin}


def _from_labels(ids: list[int], record: dict, origin: str) -> dict:
    labels, attended = record["labels"], record.get("attention_mask")
    if not isinstance(labels, list) or len(labels) != len(ids):
        found = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"{origin}: expected as many 'labels' as 'input_ids', {len(ids)}, found {found}.")
    if attended is not None and attended != [1] * len(ids):
        raise UserError(
            f"{origin}: expected an 'attention_mask' of ones, since rows are stored without padding, found others."
        )
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if type(label) is not int or label not in (token, _NOT_TRAINED):
            raise UserError(
                f"{origin}: expected labels of -100 or the token's own id, found {label!r} at place {place}."
            )
    trained = [place for place, label in enumerate(labels) if label != _NOT_TRAINED]
    if not trained:
        raise UserError(f"{origin}: expected at least one response token, found only labels of -100.")
    given = [place for place in range(trained[0], len(ids)) if labels[place] == _NOT_TRAINED]
    example = {"input_ids": ids, "prompt_length": trained[0], "origin": origin}
    return example | {"given": given} if given else example
