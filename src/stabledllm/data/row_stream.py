"""The rows of a stream: tokenised by this process or several, packed where they are documents, read forwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from stabledllm.config.settings import DataSettings
from stabledllm.data.chosen import Chosen
from stabledllm.data.overlap import Others, without
from stabledllm.data.rows import EncodingOptions, encode_part
from stabledllm.data.stream import ALIKE, ExampleStream, Part, Place, short_lengths
from stabledllm.data.stream_files import StreamFiles, StreamHub, stream_files
from stabledllm.data.text import Packer, encode_documents
from stabledllm.data.token_rows import RowsBuilder, TokenRow, TokenRows, lengths_of
from stabledllm.data.worker_pool import mapped
from stabledllm.errors import UserError

LEAST_STREAMED = 512
"""Rows that measurements read of a stream where they need fewer: they draw from them."""
Say = Callable[[str], None]


class _Tokenised(NamedTuple):
    """What a part's examples became: rows, or the ids of documents; and how many were left out."""

    rows: Sequence[TokenRow]
    documents: list[list[int]]
    dropped: list[str]
    alike: int


@dataclass(frozen=True)
class RowStream:
    """The training rows of a run that streams them; each reading begins anew, at any place.

    Args:
        files: where rows come from. options: how examples become rows. others: validation and test rows, which no
            training row is like. say: takes the lines that tell of the reading.
    """

    files: StreamFiles | StreamHub
    tokenizer: object
    settings: DataSettings
    options: EncodingOptions
    others: Others | None = None
    say: Say = lambda _: None

    @property
    def longest(self) -> int:
        """The most tokens that a row can have."""
        return self.settings.max_len

    def read(self, seed: int, start: Place | None = None, workers: int | None = None) -> StreamReader:
        """Read the rows in the order of a seed, from a place on; the last rows of a pass are followed by the next's.

        Args:
            workers: processes that tokenise; those of the settings without it.
        """
        return StreamReader(self, seed, start or Place(), workers or self.settings.workers or 1)

    def first(self, rows: int) -> TokenRows:
        """The first rows in the order of ``data.seed``, for what needs rows before training, such as a fit.

        Raises:
            UserError: anything wrong with the files or the rows that are read.
        """
        return self.first_told(rows)[0]

    def first_told(self, rows: int) -> tuple[TokenRows, str]:
        """The same, with a sentence on what was read for it."""
        builder, quiet = RowsBuilder(), replace(self, say=lambda _: None)
        read = left_out = ""
        with closing(quiet.read(self.settings.seed, workers=1)) as reader:
            for row in reader:
                if reader.place.epoch:  # there are fewer in a whole pass
                    break
                builder.add(row)
                read, left_out = reader.examples.reading.said(), reader.left_out()
                if len(builder) == rows:
                    break
        return builder.rows(), f"train: {read}, of which the first {len(builder)} rows are taken{left_out}"

    def told(self) -> str:
        """A sentence on where the rows come from, and in which order."""
        rows = self.settings.shuffle_buffer
        order = "as they are stored" if rows == 1 else f"shuffled in a buffer of {rows:,}"
        return f"train: streamed from {self.files.told()}, {order}; nothing is stored"


class StreamReader(Iterator[TokenRow]):
    """The rows of a stream from a place on, one after the other, without end.

    ``places`` are those at which buffers began, from which the rows behind them can be read again; who reads takes the
    oldest away.
    """

    def __init__(self, stream: RowStream, seed: int, start: Place, workers: int):
        self.stream, self.place = stream, start
        self.examples = ExampleStream(stream.files, stream.settings, stream.others)
        self.places: deque[Place] = deque()
        settings = stream.settings
        self._packer = Packer(short_lengths(seed, settings.max_len, settings.short_share), start.row, start.waiting)
        self._told_of_length = False
        tokenise = partial(_tokenised, tokenizer=stream.tokenizer, options=stream.options, others=stream.others)
        parts = self.examples.parts(seed, start)
        self._rows = self._read(start, mapped(tokenise, parts, workers, stream.say))

    def __next__(self) -> TokenRow:
        return next(self._rows)

    def close(self) -> None:
        """End the reading and the processes that tokenise."""
        self._rows.close()

    def counted(self) -> str:
        """A sentence on what was read so far."""
        passes = f"{self.place.epoch + 1} {'passes' if self.place.epoch else 'pass'}"
        return f"train: {self.place.row} rows were read in {passes}{self.left_out()}"

    def left_out(self) -> str:
        """A clause on the examples that became no rows; empty where all did."""
        longest, place = self.stream.settings.max_len, self.place
        reasons = {f"longer than max_len={longest}": place.dropped, "like a validation or test row": place.alike}
        told = [f"{number} {reason}" for reason, number in reasons.items() if number]
        return f"; dropped {' and '.join(told)}" if told else ""

    def _read(self, start: Place, made: Iterator[tuple[Part, _Tokenised]]) -> Iterator[TokenRow]:
        before, whole = start.row, not (start.file or start.read)
        with closing(made):
            for part, tokenised in made:
                if part.begins:
                    self._begin(part.begins)
                self._count(tokenised)
                for row in self._packed(tokenised, part):
                    self.place = replace(self.place, row=self.place.row + 1)
                    yield row
                if part.ends_pass:
                    if whole and self.place.row == before:
                        self._refuse_nothing()
                    before, whole = self.place.row, True
                    self.stream.say(f"train: all files are read; pass {self.place.epoch + 2} begins")

    def _begin(self, begins: Place) -> None:
        so_far = {name: getattr(self.place, name) for name in ("row", "dropped", "alike")}
        self.place = replace(begins, **so_far, waiting=list(self._packer.waiting))
        self.places.append(self.place)

    def _packed(self, tokenised: _Tokenised, part: Part) -> Iterable[TokenRow]:
        yield from tokenised.rows
        for ids in tokenised.documents:
            yield from self._packer.add(ids)
        if part.ends_pass:
            yield from self._packer.rest()

    def _count(self, tokenised: _Tokenised) -> None:
        place = self.place
        dropped, alike = place.dropped + len(tokenised.dropped), place.alike + tokenised.alike
        self.place = replace(place, dropped=dropped, alike=alike)
        if tokenised.dropped and not self._told_of_length:
            self._told_of_length = True
            longest = self.stream.settings.max_len
            self.stream.say(
                f"train: rows longer than max_len={longest} are dropped; the first is {tokenised.dropped[0]}"
            )

    def _refuse_nothing(self) -> None:
        raise UserError(
            f"data '{self.stream.settings.train}': expected at least one row of at most "
            f"max_len={self.stream.settings.max_len} tokens that is in no other split, found none in all files."
        )


def _tokenised(part: Part, tokenizer, options: EncodingOptions, others: Others | None) -> _Tokenised:
    examples = [example for example in part.examples if ALIKE not in example]
    left_out = len(part.examples) - len(examples)
    if others:
        examples, alike = without(examples, others)
        left_out += len(alike)
    if examples and "text" in examples[0]:
        return _Tokenised([], encode_documents(examples, tokenizer), [], left_out)
    encoded = encode_part(examples, tokenizer, options)
    return _Tokenised(encoded.rows, [], encoded.dropped, left_out)


def open_stream(
    settings: DataSettings,
    tokenizer,
    options: EncodingOptions,
    chosen: Chosen | None = None,
    say: Say = lambda _: None,
) -> RowStream:
    """The training rows under ``data.streaming``; nothing is read yet.

    Args:
        chosen: holds the validation and test rows, which no training row is to be like.

    Raises:
        UserError: settings that have no meaning there, or no files.
    """
    others = Others([*chosen.splits["validation"], *chosen.test]) if chosen else None
    return RowStream(stream_files(settings), tokenizer, settings, options, others, say)


def known_rows(rows: Sequence[TokenRow] | RowStream, wanted: int) -> Sequence[TokenRow]:
    """All rows where they are known; of a stream the first ones, as many as wanted."""
    return rows.first(wanted) if isinstance(rows, RowStream) else rows


def longest_of(rows: Sequence[TokenRow] | RowStream) -> int:
    """The tokens of the longest row; of a stream the most that one can have."""
    return rows.longest if isinstance(rows, RowStream) else max(lengths_of(rows))
