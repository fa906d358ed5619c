"""Streamed rows for the steps of a run: by number, forwards, and from a checkpoint's place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from torch.utils.data import Sampler

from stabledllm.config.settings import TrainSettings
from stabledllm.data.digests import text_digest
from stabledllm.data.row_stream import RowStream, StreamReader
from stabledllm.data.splits import refuse_few_rows
from stabledllm.data.stream import ExampleStream, Place
from stabledllm.data.token_rows import TokenRow
from stabledllm.noise.methods import Method
from stabledllm.runtime.files import read_json, write_json

PLACE = "stream.json"
"""The file of a checkpoint that says from where its rows go on."""
SCHEMA = "stabledllm/stream/1"
_KNOWN = 128
"""Rows of a stream that are read before training, at least."""
Check = Callable[[Sequence[TokenRow]], None]


class StreamedRows(Sequence[TokenRow]):
    """The rows of all steps of a run, in the stream's order: row ``i`` belongs to step ``i // batch``.

    They can be asked for in increasing order alone. Each rank reads the whole stream and keeps its share, so that how a
    step is split over ranks and accumulation changes no row of it.

    Args:
        seed: of the order. steps, batch: of the run.
    """

    def __init__(self, stream: RowStream, *, seed: int, steps: int, batch: int):
        self.stream, self.seed, self.batch, self._length = stream, seed, batch, steps * batch
        self.checks: list[Check] = []
        """Applied to every row that is asked for."""
        self._start, self._skip, self._next = Place(), 0, 0
        self._before = 0
        """Number of the run's rows that were none of this stream's, before settings were changed on the way."""
        self._reader: StreamReader | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> TokenRow:
        if number < self._next:
            raise IndexError(f"row {number} of a stream was asked for after row {self._next - 1}")
        reader = self._reader = self._reader or self._begin()
        for _ in range(number - self._next + 1):
            row = next(reader)
        self._next = number + 1
        # A loader may be a step ahead of the checkpoint that is still to be made.
        needed = number - self._before - 2 * self.batch
        while len(reader.places) > 1 and reader.places[1].row <= needed:
            reader.places.popleft()
        for check in self.checks:
            check([row])
        return row

    def resume(self, checkpoint: Path, step: int) -> None:
        """Go on from a checkpoint after that many steps, without reading what lies before its place.

        Where another stream was read before, or none (``allow_changed``), this one is read from its beginning.
        """
        path, row = checkpoint / PLACE, step * self.batch
        saved = read_json(path, SCHEMA) if path.is_file() else {}
        if saved.get("stream") == self._name():
            self._start, self._skip = Place(**saved["place"]), saved["skip"]
            self.stream.say(f"train: the stream goes on in {self._examples().told(self.seed, self._start)}")
        self._before, self._next = row - self._start.row - self._skip, row

    def save(self, checkpoint: Path, step: int) -> None:
        """Write into a checkpoint from where the rows after that many steps can be read again."""
        own = step * self.batch - self._before
        places = self._reader.places if self._reader else ()
        place = max((place for place in places if place.row <= own), key=lambda p: p.buffer, default=self._start)
        write_json(
            checkpoint / PLACE,
            {"schema": SCHEMA, "stream": self._name(), "place": asdict(place), "skip": own - place.row},
        )

    def close(self) -> None:
        """End the reading and the processes that tokenise."""
        if self._reader:
            self._reader.close()

    def counted(self) -> list[str]:
        """A sentence on what was read, in a list that is empty where nothing was."""
        return [self._reader.counted()] if self._reader else []

    def _examples(self) -> ExampleStream:
        return ExampleStream(self.stream.files, self.stream.settings)

    def _begin(self) -> StreamReader:
        reader = self.stream.read(self.seed, self._start)
        for _ in range(self._skip):
            next(reader)
        return reader

    def _name(self) -> str:
        """What a place is a place of: these files in an order of this seed, with buffers of this size."""
        size = self.stream.settings.shuffle_buffer
        return text_digest("\n".join([f"{self.seed} {size}", *self.stream.files.names]))


class StreamOrder(Sampler):
    """Yields ``(row, place)`` for every row of a run in turn, as :class:`~stabledllm.training.ordering.EpochOrder` does
    for rows whose order is drawn."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(range(self.rows), range(self.rows), strict=True)


def check_rows(rows: Sequence[TokenRow], check: Check) -> None:
    """Apply a check to all rows: now, or to each streamed one as it comes."""
    if isinstance(rows, StreamedRows):
        rows.checks.append(check)
    else:
        check(rows)


def known_for(
    rows: Sequence[TokenRow] | RowStream, method: Method, settings: TrainSettings, say: Callable[[str], None]
) -> Sequence[TokenRow]:
    """The rows that stand for all before training, for checks, a fit and the mean cost: all, or a stream's first.

    Raises:
        UserError: a step takes more rows than there are, as far as that is known of a stream.
    """
    if not isinstance(rows, RowStream):
        refuse_few_rows(settings.batch, len(rows), joined=len(rows) > 0 and not rows[0].prompt_length)
        return rows
    wanted = max(_KNOWN, settings.ppots.rows if method.needs_p else 0)
    first, told = rows.first_told(wanted)
    if len(first) < wanted:  # these are all
        refuse_few_rows(settings.batch, len(first), joined=len(first) > 0 and not first[0].prompt_length)
    say(f"{told}, for what needs rows before training")
    return first


def rows_of_run(rows: Sequence[TokenRow] | RowStream, settings: TrainSettings) -> Sequence[TokenRow]:
    """The rows that the Trainer takes by number; of a stream those of all its steps."""
    if not isinstance(rows, RowStream):
        return rows
    seed = settings.seed if settings.order_seed is None else settings.order_seed
    return StreamedRows(rows, seed=seed, steps=settings.steps, batch=settings.batch)


def reading(rows: Sequence[TokenRow]):
    """While this context is open, rows may be read; behind it, nothing reads or tokenises any more."""
    return closing(rows) if isinstance(rows, StreamedRows) else nullcontext()


def counted(rows: Sequence[TokenRow]) -> list[str]:
    """A sentence on what was read of a stream, in a list that is empty for other rows."""
    return rows.counted() if isinstance(rows, StreamedRows) else []
