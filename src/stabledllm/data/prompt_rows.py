"""Rows that ask and need no answer: under which keys a prompt stands, and what is read beside it for rewards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from stabledllm.data.turns import ROLES, turns_of
from stabledllm.errors import UserError

ANSWER = "?"
"""Stands for the answer that a prompt does not have, where a format wants one."""
UNANSWERED = "unanswered"
"""The key of an example whose answer is only :data:`ANSWER`."""
ASKS = {
    "messages": ("messages", "messages"),
    "conversations": ("sharegpt", "conversations"),
    "conversation": ("sharegpt", "conversation"),
    "instruction": ("alpaca", "output"),
    "prompt": ("prompt-completion", "completion"),
    "question": ("question-answer", "answer"),
    "query": ("query-response", "response"),
    "input": ("input-output", "output"),
    "caption": ("prompt-completion", "completion"),
}
"""For each key that a prompt may stand under: its format, and the key of the answer in it."""
CONVERSATIONS = ("messages", "sharegpt")
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What rewards are given besides columns, under names of TRL's, so that no column has them."""
GOLDS = ("gold", "answer")
"""The keys of a right answer that is no response, in the order in which they are looked at."""
_NO_COLUMNS = ("prompt", "completion", *GIVEN)
_TAKEN_OFF = ("train", "weight")

Make = Callable[[dict, str, Any], list[dict]]


def with_stand_in(record: dict, origin: str, named: str | None = None) -> tuple[str, dict]:
    """The format of a row that asks, and the row with :data:`ANSWER` in place of any answer.

    Args:
        named: the only format that it may have; None: its keys tell.

    Raises:
        UserError: no prompt in it.
    """
    asks = next((key for key, (name, _) in ASKS.items() if key in record and named in (None, name)), None)
    if asks is None:
        known = ", ".join(key for key, (form, _) in ASKS.items() if named in (None, form))
        raise UserError(
            f"{origin}: expected a prompt under {known}, found keys {sorted(record)[:12]}; if it is under another "
            f'name, say "data.columns={{prompt: YOUR_KEY}}".'
        )
    name, answer = ASKS[asks]
    if asks == "caption":
        record = record | {"prompt": record["caption"]}
    return name, _with_answer(record, answer, origin) if name in CONVERSATIONS else record | {answer: ANSWER}


def prompt_examples(record: dict, origin: str, options: Any, formats: Mapping[str, tuple[Any, Make]]) -> list[dict]:
    """The examples of a row for rollouts: with its answer where it has one, and with the columns that rewards get.

    Args:
        formats: by their names, whether a row has the keys of one, and what makes its examples.

    Raises:
        UserError: no prompt in it, or as the row's own format refuses it.
    """
    name = next((n for n, (fits, _) in formats.items() if fits(record) and _is_answered(record, n, origin)), None)
    more: dict[str, Any] = {"columns": _columns(record)}
    if name is None:
        name, whole = with_stand_in(record, origin)
        more[UNANSWERED] = True
    else:
        whole = record
    gold: dict[str, Any] = {}
    golds = GOLDS if more.get(UNANSWERED) or name != "question-answer" else GOLDS[:1]
    if (key := next((key for key in golds if record.get(key) is not None), None)) is not None:
        gold = {"gold": more["columns"][key]}
    if name in CONVERSATIONS or isinstance(record.get("prompt"), list):
        more["conversational"] = True
    examples = formats[name][1](whole, origin, options)
    if name not in CONVERSATIONS and isinstance(record.get("prompt"), list):
        _refuse_unasked(examples[-1]["messages"][:-1], origin)
    # Answers before a last question are part of its prompt, whatever every_turn says; the right one is of the last.
    earlier = [] if UNANSWERED in more else examples[:-1]
    return [*(example | more for example in earlier), examples[-1] | more | gold]


def _is_answered(record: dict, name: str, origin: str) -> bool:
    """Whether a row of that format has an answer: a number, as a right answer may be one, is no response."""
    keys = {answer for form, answer in ASKS.values() if form == name} | {"response"}
    if name in CONVERSATIONS:
        key = next(key for key, (form, _) in ASKS.items() if form == name and key in record)
        turns = turns_of(record[key], key, origin)
        return bool(turns) and turns[-1]["role"] == ROLES["assistant"]
    return any(_is_response(record.get(key), key) for key in keys)


def _is_response(value: Any, key: str) -> bool:
    """Whether it is a text or messages; a list under ``answer`` may hold right answers, of which none is a response."""
    if isinstance(value, list) and key in GOLDS:
        return bool(value) and all(isinstance(each, dict) for each in value)
    return isinstance(value, str | list)


def _refuse_unasked(prompt: list[dict], origin: str) -> None:
    if prompt[-1]["role"] in ("system", ROLES["assistant"]):
        raise UserError(
            f"{origin}: expected a turn to answer at the end of 'prompt', found one of the {prompt[-1]['role']}'s."
        )


def _columns(record: dict) -> dict[str, Any]:
    """A row's keys as values that JSON can write; a date, say, as its text."""
    columns = {str(key): value for key, value in record.items() if key not in _NO_COLUMNS}
    return json.loads(json.dumps(columns, default=str))


def _with_answer(record: dict, key: str, origin: str) -> dict:
    """The row with an answer to be at the end of its conversation, in place of those that stand there."""
    turns = list(_without_answers(turns_of(record[key], key, origin)))
    if not turns or turns[-1]["role"] == "system":
        raise UserError(f"{origin}: expected a turn to answer under '{key}', found none.")
    return {k: v for k, v in record.items() if k != key} | {key: [*turns, {"role": "assistant", "content": ANSWER}]}


def _without_answers(turns: list[dict]) -> Iterator[dict]:
    last = max((i for i, turn in enumerate(turns) if turn["role"] != "assistant"), default=-1)
    for turn in turns[: last + 1]:
        yield {key: value for key, value in turn.items() if key not in _TAKEN_OFF}


def first_unanswered(examples: Iterable[dict]) -> str | None:
    """The origin of the first example that is a prompt alone; None where all have answers."""
    return next((example["origin"] for example in examples if example.get(UNANSWERED)), None)


def filled(columns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of rows with every key that one of them has; None where a row lacks it.

    >>> filled([{"answer": 3}, {"level": "hard"}])
    [{'answer': 3, 'level': None}, {'answer': None, 'level': 'hard'}]
    """
    rows = list(columns)
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]
