"""Where streamed rows come from: files, or a data set of the hub, each readable from any of its rows on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from stabledllm.config.settings import DataSettings
from stabledllm.data import text
from stabledllm.data.containers import rows_in, without_nulls
from stabledllm.data.data_key import state_of
from stabledllm.data.folders import splits_in
from stabledllm.data.kinds import FILE, HUB, kind_of
from stabledllm.data.reading import files_of
from stabledllm.data.streamable import refuse_unstreamable_data
from stabledllm.errors import UserError
from stabledllm.tasks.hub import named_rows
from stabledllm.tasks.text_files import files_below, has_ending, read_text

_ENDS = 4096
"""Bytes at the beginning and at the end of each file that count for what it holds: all of it is never read at once."""
Records = Iterator[tuple[str, dict]]
"""Rows, each with its file and line, or its index."""


class StreamFiles:
    """The training files of a specification, in the order of their paths. ``.txt`` files are a document each.

    ``names`` are relative to the folder, so that a copy elsewhere is the same stream.

    Raises:
        UserError: nothing there, or no file that can be read in the folder.
    """

    def __init__(self, spec: str, settings: DataSettings):
        kind, where = kind_of(spec)
        path = Path(where).expanduser()
        self.documents = kind == text.KIND and (has_ending(path, ".txt") or bool(_texts_below(path)))
        self.paths = _texts_below(path) if self.documents and path.is_dir() else files_of(path, "train")
        self.as_lines = kind != FILE
        self.name = f"{path} (train)" if splits_in(path) else str(path)
        root = path if path.is_dir() else path.parent
        self.names = [file.relative_to(root).as_posix() for file in self.paths]
        self._states = [state_of(file) for file in self.paths]

    def rows(self, file: int, skip: int = 0) -> Records:
        """The rows of one file, by its number, without the first ``skip``, which were read before.

        Raises:
            UserError: anything wrong with the file or a row, or a file that is no longer as it was when the run began.
        """
        path = self.paths[file]
        self._refuse_changed(file)
        if self.documents:
            yield from [(str(path), {"text": read_text(path)})][skip:]
            return
        for origin, record in rows_in(path, as_lines=self.as_lines, skip=skip):
            yield str(origin), record
        self._refuse_changed(file)

    def digest(self) -> str:
        """A digest of the files' names and sizes, and of the first and last 4 KiB of each."""
        digest = hashlib.sha256()
        for name, state in zip(self.names, self._states, strict=True):
            digest.update(f"{name}\0{state.size}\0".encode("utf-8", "surrogateescape"))
            with open(state.path, "rb") as file:
                digest.update(file.read(_ENDS))
                file.seek(max(0, state.size - _ENDS))
                digest.update(file.read(_ENDS))
        return digest.hexdigest()[:32]

    def told(self) -> str:
        """The name, the number of files and their size, for messages."""
        files = "1 file" if len(self.paths) == 1 else f"{len(self.paths):,} files"
        return f"{self.name} ({files}, {sum(state.size for state in self._states) / 1e6:,.1f} MB)"

    def _refuse_changed(self, file: int) -> None:
        path = self.paths[file]
        if not path.is_file() or state_of(path) != self._states[file]:
            raise UserError(f"{path}: expected a file that stays as it is while it is in use, found it changed.")


class StreamHub:
    """A split of a data set on the hub, read as one file from there, without a copy on this machine."""

    documents = False
    paths: tuple[Path, ...] = ()

    def __init__(self, spec: str, settings: DataSettings):
        self._repository, _, named = kind_of(spec)[1].partition(":")
        self._split, self._subset = named or settings.split or "train", settings.subset
        self.name = f"{self._repository} {self._split}"
        self.names = [f"{self._repository} {self._subset} {self._split}"]

    def rows(self, file: int, skip: int = 0) -> Records:
        """The rows without the first ``skip``, which were read before.

        Raises:
            UserError: ``datasets`` is not installed, or the data set has no such split or cannot be read.
        """
        _, _, rows = named_rows(self._repository, self._split, self._subset, streaming=True, skip=skip)
        for number in count(skip):
            try:
                record = next(rows, None)
            except Exception as error:  # the network's, the hub's or the library's: each has types of its own
                reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
                raise UserError(
                    f"{self.name} row {number}: expected a hub that goes on giving rows, found that it fails "
                    f"({reason}); start again once it does."
                ) from None
            if record is None:
                return
            yield f"{self.name} row {number}", without_nulls(record)

    def digest(self) -> str:
        """A digest of its name, subset and split: its rows are not here to be compared."""
        return hashlib.sha256(self.names[0].encode()).hexdigest()[:32]

    def told(self) -> str:
        """The name, for messages."""
        return f"hub:{self.name}"


def stream_files(settings: DataSettings) -> StreamFiles | StreamHub:
    """Where the training rows of these settings are streamed from.

    Raises:
        UserError: settings that have no meaning for a stream, or no files.
    """
    refuse_unstreamable_data(settings)
    kind = StreamHub if kind_of(settings.train)[0] == HUB else StreamFiles
    return kind(settings.train, settings)


def _texts_below(path: Path) -> list[Path]:
    return files_below(path, [".txt"]) if path.is_dir() else []
