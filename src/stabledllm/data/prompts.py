"""Prompts to complete: typed ones, the lines of a text file, and rows in the formats of training data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from stabledllm.config.settings import DataSettings
from stabledllm.data.containers import Origin, ending_of, rows_in
from stabledllm.data.formats import FORMATS, FormatOptions
from stabledllm.data.turns import turns_of
from stabledllm.errors import UserError
from stabledllm.tasks.files import parse_object
from stabledllm.tasks.text_files import lines, open_binary

STDIN = "-"
ANSWER = "?"
"""Stands for the answer that a prompt does not have, where a format wants one."""
_ASKS = {
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
_CONVERSATIONS = ("messages", "sharegpt")
_TAKEN_OFF = ("train", "weight")


@dataclass(frozen=True)
class Prompt:
    """A prompt: the conversation that is to be answered, which ends with a turn that is none of the assistant's.

    ``origin``: where it stands. ``row``: what the file of the completions repeats of it.
    """

    messages: list[dict]
    origin: str
    tools: list[dict] = field(default_factory=list)
    row: dict = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last turn, which is the whole prompt where there is no other."""
        return self.messages[-1]["content"]


def typed_prompt(text: str, number: int) -> Prompt:
    """A prompt that was typed as it is."""
    return Prompt([{"role": "user", "content": text}], f"prompt {number}", row={"prompt": text})


def prompts_in(path: str, settings: DataSettings) -> list[Prompt]:
    """The prompts of a file, or of standard input for ``-``.

    A file whose ending is one of data's is read as rows, of which only the question is used: ``prompt``, ``question``,
    ``instruction`` (with ``input``), ``query``, ``input``, ``caption``, ``messages`` or ``conversations``. Any other is
    text with a prompt on each line that is not blank, unless its first line is a JSON object.

    Args:
        settings: ``format`` and ``columns`` of the rows.

    Raises:
        UserError: no such file, no prompt in it, or a row without a question; it names the row.
    """
    if path != STDIN and (place := Path(path).expanduser()) and (ending_of(place) or place.is_dir()):
        if place.is_dir():
            raise UserError(f"{path}: expected a file of prompts, found a folder.")
        return [_of_row(record, str(origin), settings) for origin, record in rows_in(place)]
    if path == STDIN:
        return _of_lines(sys.stdin.buffer, "standard input", settings)
    with open_binary(place) as file:
        return _of_lines(file, path, settings)


def _of_lines(file: BinaryIO, name: str, settings: DataSettings) -> list[Prompt]:
    written = ((Origin(name, number, is_line=True), line) for _, number, line in lines(file, name) if line.strip())
    first = next(written, None)
    if first is None:
        raise UserError(f"{name}: expected at least one prompt, found none.")
    read = _row_of(settings) if _is_object(first[1]) else _text_of
    return list(map(read, chain([first], written)))


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        parse_object(line, "")
    except UserError:
        return False
    return True


def _row_of(settings: DataSettings) -> Callable[[tuple[Origin, str]], Prompt]:
    return lambda each: _of_row(parse_object(each[1], str(each[0])), str(each[0]), settings)


def _text_of(each: tuple[Origin, str]) -> Prompt:
    origin, line = each
    return Prompt([{"role": "user", "content": line}], str(origin), row={"origin": str(origin), "prompt": line})


def _of_row(record: dict, origin: str, settings: DataSettings) -> Prompt:
    names = settings.columns or {}
    taken = {*names, *names.values()} if any(theirs in record for theirs in names.values()) else set()
    ours = {key: record[theirs] for key, theirs in names.items() if theirs in record}
    record = {key: value for key, value in record.items() if key not in taken} | ours
    asks = next((key for key, (name, _) in _ASKS.items() if key in record and settings.format in (None, name)), None)
    if asks is None:
        known = ", ".join(_asked_by(settings.format))
        raise UserError(
            f"{origin}: expected a prompt under {known}, found keys {sorted(record)[:12]}; if it is under another "
            f'name, say "data.columns={{prompt: YOUR_KEY}}".'
        )
    name, answer = _ASKS[asks]
    if asks == "caption":
        record = record | {"prompt": record["caption"]}
    whole = _with_answer(record, answer, origin) if name in _CONVERSATIONS else record | {answer: ANSWER}
    (example,) = FORMATS[name].make(whole, origin, FormatOptions(name))
    messages = example["messages"][:-1]
    said = messages[0]["content"] if len(messages) == 1 and messages[0].keys() == {"role", "content"} else messages
    kept = {key: record[key] for key in ("id",) if key in record}
    return Prompt(messages, origin, example.get("tools", []), {"origin": origin, **kept, "prompt": said})


def _asked_by(name: str | None) -> Iterable[str]:
    return (key for key, (form, _) in _ASKS.items() if name in (None, form))


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
