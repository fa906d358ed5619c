"""Rows that are read and tokenised as they come, of data that are never whole in memory or on disk.

The order is a function of the seed and the files alone. In each pass the files come in an order drawn anew; their rows
fill a buffer, leave it in an order drawn for it, and it is filled again. So whatever place of the stream a buffer
begins at, the rows from there on can be read again without those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import NamedTuple

import torch

from stabledllm.config.settings import DataSettings
from stabledllm.data.formats import FORMATS, FormatOptions
from stabledllm.data.kinds import kind_of
from stabledllm.data.overlap import Others, without
from stabledllm.data.prompting import prompted
from stabledllm.data.reading import Reading
from stabledllm.data.stream_files import StreamFiles, StreamHub
from stabledllm.noise.streams import Key, Stream

PART = 64
"""Examples that are tokenised at once."""
ALIKE = "alike"
"""The key of an example that is left out, since another of its conversation is like a row of another split."""
_UNSHUFFLED = 1024
"""Rows of a buffer that none are shuffled in: it only says from where rows can be read again."""
_MOST_CHARACTERS = 1 << 26
"""Characters, or 8 bytes of ids, at which a buffer is full, however few its rows: some are whole books."""
_FILES, _ROWS = 1, 2
"""The views of the data's random stream that the two orders are drawn from; rows in memory are drawn from view 0."""


@dataclass(frozen=True)
class Place:
    """Where a buffer of a stream begins, in numbers of what lies before it."""

    buffer: int = 0
    epoch: int = 0
    file: int = 0
    """Files of this pass, in its order."""
    read: int = 0
    """Rows of that file."""
    row: int = 0
    """Rows that the stream gave."""
    dropped: int = 0
    """Examples longer than ``max_len``."""
    alike: int = 0
    """Examples like a validation or test row."""
    waiting: list[int] = field(default_factory=list)
    """The ids of documents that fill no row yet."""


class Part(NamedTuple):
    """Some examples of a buffer, in the order in which they leave it."""

    examples: list[dict]
    begins: Place | None = None
    """Where the buffer begins whose first examples these are, without what only the rows tell."""
    ends_pass: bool = False


class ExampleStream:
    """The examples of the training files, in the stream's order, from any place on.

    Args:
        others: the validation and test rows; what is like one of them is left out.
    """

    def __init__(self, files: StreamFiles | StreamHub, settings: DataSettings, others: Others | None = None):
        kind = kind_of(settings.train)[0]
        fields = ("text",) if files.documents else tuple(settings.text_fields)
        named = kind if kind in FORMATS else settings.format
        self.files, self.settings, self.others = files, settings, others
        self.reading = Reading(files, FormatOptions(named, settings.columns or {}, settings.every_turn, fields))

    def told(self, seed: int, place: Place) -> str:
        """The file and the row of it at which a place lies, for messages."""
        name = self.files.names[self._file_order(seed, place.epoch)[place.file]]
        return f"{name}, behind row {place.read:,} of it, in pass {place.epoch + 1}"

    def parts(self, seed: int, start: Place) -> Iterator[Part]:
        """The examples from a place on, pass after pass, without end. One buffer is in memory at a time.

        Raises:
            UserError: on iteration, anything wrong with a file or a row.
        """
        buffer, file, read = start.buffer, start.file, start.read
        for epoch in count(start.epoch):
            for at_file, at_row, examples in self._buffers(self._file_order(seed, epoch), file, read):
                place = Place(buffer, epoch, at_file, at_row)
                shuffled = iter(self._shuffled(examples, Key(seed, buffer)))
                while part := list(islice(shuffled, PART)):
                    yield Part(part, place)
                    place = None
                buffer += 1
            yield Part([], ends_pass=True)
            file = read = 0

    def _buffers(self, order: list[int], first: int, read: int) -> Iterator[tuple[int, int, list[dict]]]:
        """The buffers of a pass, each with the file and the row of it at which it begins."""
        rows = _UNSHUFFLED if self.settings.shuffle_buffer == 1 else self.settings.shuffle_buffer
        examples: list[dict] = []
        begins, characters = (first, read), 0
        for file in range(first, len(order)):
            skip = read if file == first else 0
            for row, (origin, record) in enumerate(self.files.rows(order[file], skip), skip):
                if not examples:
                    begins, characters = (file, row), 0
                made = self._made(record, origin)
                examples += made
                characters += sum(map(_characters, made))
                if len(examples) >= rows or characters >= _MOST_CHARACTERS:
                    yield *begins, examples
                    examples = []
        if examples:
            yield *begins, examples

    def _made(self, record: dict, origin: str) -> list[dict]:
        """The examples of one row; where one of several is like a row of another split, all are marked so."""
        examples = self.reading.made(record, origin)
        if self.settings.system_prompt is not None:
            examples = list(prompted(examples, self.settings, []))
        if self.others and len(examples) > 1 and without(examples, self.others)[1]:
            return [example | {ALIKE: True} for example in examples]
        return examples

    def _file_order(self, seed: int, epoch: int) -> list[int]:
        files = len(self.files.names)
        if self.settings.shuffle_buffer == 1:
            return list(range(files))
        return _permutation(Key(seed, epoch), files, _FILES)

    def _shuffled(self, examples: list[dict], key: Key) -> list[dict]:
        if self.settings.shuffle_buffer == 1:
            return examples
        return [examples[place] for place in _permutation(key, len(examples), _ROWS)]


def short_lengths(seed: int, length: int, share: float) -> Callable[[int], int]:
    """The length of each row of documents, by its number: ``length``, or for a ``share`` of them uniform on 1 to it."""
    drawn: dict[int, list[list[float]]] = {}

    def length_of(row: int) -> int:
        if not share:
            return length
        block, place = divmod(row, 1024)
        if block not in drawn:
            drawn.clear()
            at = torch.arange(2 * 1024)
            drawn[block] = Key(seed, block).row_uniforms(Stream.DATA, at, view=3).view(-1, 2).tolist()
        short, size = drawn[block][place]
        return 1 + int(size * length) if short < share else length

    return length_of


def _permutation(key: Key, n: int, view: int) -> list[int]:
    return key.row_uniforms(Stream.DATA, torch.arange(n), view).argsort(stable=True).tolist()


def _characters(example: dict) -> int:
    if "input_ids" in example:
        return 8 * len(example["input_ids"])
    return len(example.get("text", "")) + sum(len(turn["content"]) for turn in example.get("messages", ()))
