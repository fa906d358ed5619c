"""Prompts to complete: typed ones, the lines of a text file, and rows in the formats of training data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from stabledllm.config.settings import DataSettings
from stabledllm.data.containers import Origin, ending_of, rows_in
from stabledllm.data.formats import BY_NAME, FORMATS, FormatOptions
from stabledllm.data.prompt_rows import with_stand_in
from stabledllm.errors import UserError
from stabledllm.tasks.files import parse_object
from stabledllm.tasks.text_files import lines, open_binary

STDIN = "-"


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
    name, whole = with_stand_in(record, origin, None if settings.format in BY_NAME else settings.format)
    (example,) = FORMATS[name].make(whole, origin, FormatOptions(name))
    messages = example["messages"][:-1]
    said = messages[0]["content"] if len(messages) == 1 and messages[0].keys() == {"role", "content"} else messages
    kept = {key: record[key] for key in ("id",) if key in record}
    return Prompt(messages, origin, example.get("tools", []), {"origin": origin, **kept, "prompt": said})
