"""Reading examples from files in any of the known containers and formats, in order, never whole in memory.

This is what everything that stores or tokenises rows stands on: iterate a :class:`Reading` for ``(origin, example)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stabledllm.data.containers import ENDINGS, Origin, rows_in
from stabledllm.data.formats import TEXT, FormatOptions, examples_of
from stabledllm.errors import UserError
from stabledllm.tasks.text_files import files_below


class FileState(NamedTuple):
    """What tells whether a file is still the same, without reading it."""

    path: str
    size: int
    mtime_ns: int


class Reading:
    """The examples of a file, or of all files of a folder in the order of their paths.

    Each iteration reads from the beginning and yields ``(origin, example)``. An example is a plain dict that JSON can
    write (see :mod:`stabledllm.data.sources`); a row of which several answers are trained makes several, one after the
    other, with the same origin.

    Args:
        path: a file, or a folder with files of :data:`~stabledllm.data.containers.ENDINGS`.
        options: how rows become examples. as_lines: a file without a known ending is JSON lines.

    Raises:
        UserError: no such file, or no file in the folder; on iteration, anything wrong with a file or a row.
    """

    def __init__(self, path: Path, options: FormatOptions | None = None, *, as_lines: bool = False):
        self.path, self.options, self._as_lines = path, options or FormatOptions(), as_lines
        self.paths: Sequence[Path] = files_of(path)
        self.counts: Counter[str] = Counter()
        """Rows read so far in the newest iteration, by the name of their format."""

    def __iter__(self) -> Iterator[tuple[Origin, dict]]:
        self.counts = counts = Counter()
        for path in self.paths:
            for origin, record in rows_in(path, as_lines=self._as_lines):
                form, examples = examples_of(record, str(origin), self.options)
                if not counts[form.name]:
                    self._refuse_mixed(form.name, counts, origin, record)
                counts[form.name] += 1
                for example in examples:
                    yield origin, example

    def files(self) -> list[FileState]:
        """The files in the order in which they are read, with their sizes and times."""
        states = ((path, path.stat()) for path in self.paths)
        return [FileState(str(path), state.st_size, state.st_mtime_ns) for path, state in states]

    def said(self) -> str:
        """A sentence on what was read in the newest iteration: how many rows, in which formats, from where."""
        kinds = ", ".join(f"{rows} {'row' if rows == 1 else 'rows'} as {name}" for name, rows in self.counts.items())
        of = "" if len(self.paths) == 1 else f" ({len(self.paths)} files)"
        return f"read {kinds or 'nothing'} from {self.path}{of}"

    @staticmethod
    def _refuse_mixed(name: str, counts: Counter, origin: Origin, record: dict) -> None:
        others = [other for other in counts if (other == TEXT) != (name == TEXT) and counts[other]]
        if others:
            raise UserError(
                f"{origin}: expected a row as {others[0]}, like those before it, since documents and answers are "
                f"trained apart, found keys {sorted(record)}, which is {name}."
            )


def files_of(path: Path) -> list[Path]:
    """The files that a path names: itself, or all files with a known ending in a folder and below it, sorted.

    Raises:
        UserError: nothing there, or a folder without such files.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: expected a file or a folder, found nothing.")
        return [path]
    files = files_below(path, ENDINGS)
    if not files:
        raise UserError(f"{path}: expected files that end in {', '.join(ENDINGS)} in this folder, found none.")
    return files
