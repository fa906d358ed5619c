"""Reading examples from files or the hub, in any of the known formats, in order, never whole in memory.

This is what everything that stores or tokenises rows stands on: iterate a :class:`Reading` for ``(origin, example)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stabledllm.data.containers import ENDINGS, Origin, Rows, rows_in, without_nulls
from stabledllm.data.folders import by_splits, data_files, splits_in
from stabledllm.data.formats import PROMPTS, TEXT, FormatOptions, examples_of
from stabledllm.data.turns import has_earlier_answers
from stabledllm.errors import UserError
from stabledllm.tasks.hub import named_rows

_SHOWN = 8
"""Keys that a sentence names."""


class FileState(NamedTuple):
    """What tells whether a file is still the same, without reading it."""

    path: str
    size: int
    mtime_ns: int


class Files:
    """A source of rows: a file, or all files of a folder in the order of their paths.

    Args:
        path: a file, or a folder with files of :data:`~stabledllm.data.containers.ENDINGS`.
        as_lines: a file without a known ending is JSON lines. split: the part of a folder whose files are named after
            splits (:func:`~stabledllm.data.folders.splits_in`); the whole of other folders.

    Raises:
        UserError: no such file, or no file in the folder.
    """

    def __init__(self, path: Path, *, as_lines: bool = False, split: str | None = None):
        self.as_lines, self.paths = as_lines, files_of(path, split)
        self.name = f"{path} ({split})" if split and split in splits_in(path) else str(path)

    def rows(self) -> Rows:
        """The rows, from the first on."""
        for path in self.paths:
            yield from rows_in(path, as_lines=self.as_lines)


class HubData:
    """A source of rows: a split of a data set on the hub; ``subset`` is the hub's name of a configuration."""

    def __init__(self, repository: str, split: str, subset: str | None = None):
        self.name, self.paths, self._rows = named_rows(repository, split, subset)
        self._again = partial(named_rows, repository, split, subset)

    def rows(self) -> Rows:
        """The rows, from the first on."""
        for number, record in enumerate(self._again()[2]):
            yield Origin(self.name, number), without_nulls(record)


class Reading:
    """The examples of a source of rows.

    Each iteration reads from the beginning and yields ``(origin, example)``. An example is a plain dict that JSON can
    write (see :mod:`stabledllm.data.sources`); a row of which several answers are trained makes several, one after the
    other, with the same origin.

    Args:
        source: :class:`Files` or :class:`HubData`. options: how rows become examples.

    Raises:
        UserError: on iteration, anything wrong with a file or a row.
    """

    def __init__(self, source: Files | HubData, options: FormatOptions | None = None):
        self.source, self.options = source, options or FormatOptions()
        self.counts: Counter[str] = Counter()
        """Rows made into examples since the newest iteration began, by the name of their format."""
        self.earlier = 0
        """How many of them have earlier answers that are trained under ``every_turn`` alone."""
        self.unread: set[str] = set()
        """Keys of them that their formats do not read; documents have any."""
        self.columns: set[str] = set()
        """Keys of them that rewards get."""

    def __iter__(self) -> Iterator[tuple[Origin, dict]]:
        self.counts, self.earlier, self.unread, self.columns = Counter(), 0, set(), set()
        for origin, record in self.source.rows():
            for example in self.made(record, str(origin)):
                yield origin, example

    def made(self, record: dict, origin: str) -> list[dict]:
        """The examples of one row.

        Raises:
            UserError: a row that cannot be read, or a document among rows that are none.
        """
        form, examples = examples_of(record, origin, self.options)
        if form.name not in self.counts:
            self._refuse_mixed(form.name, record, origin)
        self.counts[form.name] += 1
        if form.name == PROMPTS:
            self.columns |= examples[0]["columns"].keys()
        elif form.name != TEXT:
            self.unread |= record.keys() - form.reads - set(self.options.columns.values())
        if len(examples) == 1 and not self.options.every_turn and not isinstance(record.get("prompt"), list):
            self.earlier += has_earlier_answers(examples[0].get("messages", ()))
        return examples

    def files(self) -> list[FileState]:
        """The files in the order in which they are read, with their sizes and times."""
        states = ((path, path.stat()) for path in self.source.paths)
        return [FileState(str(path), state.st_size, state.st_mtime_ns) for path, state in states]

    def said(self) -> str:
        """A sentence on what was read since the newest iteration began: how many rows, in which formats, from where."""
        kinds = ", ".join(f"{rows} {'row' if rows == 1 else 'rows'} as {name}" for name, rows in self.counts.items())
        files = len(self.source.paths)
        said = f"read {kinds or 'nothing'} from {self.source.name}" + (f" ({files} files)" if files > 1 else "")
        for what, keys in (("that are not read", sorted(self.unread)), ("for rewards", sorted(self.columns))):
            if keys:
                said += f"; keys {what}: {', '.join(keys[:_SHOWN])}" + (", ..." if keys[_SHOWN:] else "")
        if self.earlier:
            said += f"; of {self.earlier} with several answers the last alone is trained (all: data.every_turn=true)"
        return said

    def _refuse_mixed(self, name: str, record: dict, origin: str) -> None:
        other = next((other for other in self.counts if (other == TEXT) != (name == TEXT)), None)
        if other:
            raise UserError(
                f"{origin}: expected a row as {other}, like those before it, since documents and answers are trained "
                f"apart, found keys {sorted(record)}, which is {name}."
            )


def files_of(path: Path, split: str | None = None) -> list[Path]:
    """The files that a path names: itself, or those with a known ending in a folder and below it, sorted.

    Args:
        split: only these of a folder whose files are named after splits.

    Raises:
        UserError: nothing there, or a folder without such files.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: expected a file or a folder, found nothing.")
        return [path]
    files = data_files(path)
    if not files:
        raise UserError(f"{path}: expected files that end in {', '.join(ENDINGS)} in this folder, found none.")
    by_split = by_splits(path, files)
    return by_split.get(split, []) if by_split and split else files
