"""Refusing rows that cannot be trained on, with the nearest known format and the option that reads it."""

from __future__ import annotations

import difflib
from typing import NoReturn

from stabledllm.errors import UserError

Keys = tuple[tuple[str, ...], ...]


def refuse_preference(record: dict, origin: str, other: str | None) -> None:
    """Refuse a row of preferences: some of its answers are bad ones.

    Args:
        other: name of a format that the row has besides.

    Raises:
        UserError: it is one.
    """
    columns, found, reads = "", None, []
    if "chosen" in record and isinstance(record["chosen"], list) and len(record["chosen"]) > 1:
        found, columns = "'chosen' and 'rejected'", '"data.columns={messages: chosen}" data.format=messages'
    elif "chosen" in record or "rejected" in record:
        key = next((key for key in ("prompt", "question", "instruction") if key in record), "prompt")
        found = "'chosen' and 'rejected'"
        columns = f'data.format=prompt-completion "data.columns={{prompt: {key}, completion: chosen}}"'
    elif "label" in record and isinstance(record["label"], bool) and "completion" in record:
        found = "'completion' and a 'label' of true or false"
    elif "completions" in record:
        found = "'completions'"
    if found is None:
        return
    if "chosen" in record:
        reads = [columns, *([f"data.format={other}"] if other else [])]
    elif "label" in record:
        reads = ["leave out the rows whose 'label' is false, and that key"]
    hint = f"; to train on the good answers alone: {' or '.join(reads)}" if reads else ""
    raise UserError(f"{origin}: expected a row with an answer to train on, found one of preferences ({found}){hint}.")


def refuse_unknown(record: dict, origin: str, formats: dict[str, Keys]) -> NoReturn:
    """Refuse a row of no known format.

    Args:
        formats: the keys of each known format, any one of each tuple.

    Raises:
        UserError: always; it names the formats, and the nearest with what to rename for it.
    """
    if "prompt" in record or "response" in record:
        lacks = "'completion' or 'response', found nothing" if "prompt" in record else "'prompt', found nothing"
        given = "prompt" if "prompt" in record else "response"
        raise UserError(f"{origin}: expected text beside '{given}' under {lacks} (its keys: {_listed(record)}).")
    if len(record) == 1 and (mark := next((one for one in (";", "\t", "|") if one in str(*record)), None)):
        raise UserError(
            f"{origin}: expected columns separated by commas, found the one column {_listed(record)}: its columns are "
            f"separated by {mark!r}; separate them by commas."
        )
    known = "; ".join(" and ".join("/".join(names) for names in keys) for keys in formats.values())
    nearest = max(formats, key=lambda name: _nearness(record, formats[name]))
    renamed = _renamed(record, formats[nearest])
    hint = ""
    if _nearness(record, formats[nearest]) > 0:
        pairs = ", ".join(f"{ours}: {theirs or 'YOUR_KEY'}" for ours, theirs in renamed.items())
        hint = f'; nearest is {nearest}, which "data.columns={{{pairs}}}" reads' if pairs else ""
    else:
        ask, answer = (_meant(record, name) for name in ("prompt", "completion"))
        if ask is None and answer is None and len(record) == 2:
            ask, answer = map(str, record)  # in the order of the file
        ask, answer = ask or "YOUR_KEY", answer or "YOUR_KEY"
        hint = f'; if it is one under other names, say "data.columns={{prompt: {ask}, completion: {answer}}}"'
    raise UserError(f"{origin}: expected keys of a known format ({known}), found keys {_listed(record)}{hint}.")


def _listed(record: dict) -> str:
    keys = sorted(map(str, record))
    return str(keys[:12])[:-1] + (", ...]" if len(keys) > 12 else "]")


def _like(record: dict, names: tuple[str, ...]) -> str | None:
    """The row's key that is one of these names, or is written much like one."""
    plain = {key.lower(): key for key in map(str, record)}
    for name in names:
        if close := difflib.get_close_matches(name, plain, n=1, cutoff=0.75):
            return plain[close[0]]
    return None


def _nearness(record: dict, keys: Keys) -> float:
    return sum(_like(record, names) is not None for names in keys) / len(keys)


def _renamed(record: dict, keys: Keys) -> dict[str, str | None]:
    found = {names[0]: _like(record, names) or _meant(record, names[0]) for names in keys}
    return {ours: theirs for ours, theirs in found.items() if ours not in record}


def _meant(record: dict, ours: str) -> str | None:
    """The row's key whose name is one that people use for what the format calls ``ours``."""
    names = _ASKS if ours in _ASKS else _ANSWERS
    return next((key for key in map(str, record) if key.lower() in names), None)


_ASKS = ("prompt", "question", "query", "instruction", "input", "q", "ask", "problem", "user", "human", "source")
_ANSWERS = (
    "completion", "response", "answer", "output", "a", "reply", "solution", "target", "assistant", "gpt", "chosen",
    "final_answer", "label",
)  # fmt: skip
