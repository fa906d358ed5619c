"""Journals of work on numbered items: finished items are on disk, so that a killed process need not repeat them.

A journal is a folder of JSON lines, one file per rank. The first line of a file holds what decides its results; each
further line is one item, ``{"place": its number, ...}``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.evaluation.identity import refuse_other
from stabledllm.evaluation.ranks import ALONE, Ranks
from stabledllm.runtime.provenance import versions
from stabledllm.runtime.secrets import hidden

SCHEMA = "stabledllm/journal/1"
Work = Callable[[range], list[dict]]


class Journal:
    """The results of one kind of work in a folder.

    Args:
        name: of the kind of work; journals of several kinds may share a folder.
        identity: what decides the results; a journal with another identity is refused.
    """

    def __init__(self, folder: Path, name: str, identity: dict, ranks: Ranks = ALONE):
        self.folder, self.name, self.identity, self.ranks = folder, name, identity, ranks
        self.other_versions: dict[str, str] = {}
        """Packages of which another version did a part of the work, with that version."""

    @property
    def path(self) -> Path:
        """This rank's file."""
        return self.folder / f"{self.name}-{self.ranks.rank}.jsonl"

    def collect(self, n: int, size: int, work: Work, progress: Callable[[int], None] = lambda _: None) -> list[dict]:
        """The results of items 0 to n - 1, in order, on every rank; only items that are not on disk are worked on.

        Items are grouped in runs of ``size``, which are dealt to the ranks in turn; each is written and flushed to disk
        when it is done. The runs are the same on any number of ranks, which may change between a kill and the next
        start, so that every batch is the same to the last bit. A last line that a kill cut off is removed.

        Args:
            work: returns the results of a run of items, as JSON objects.
            progress: called with the number of items just done, first with the number of those on disk.

        Raises:
            UserError: the journal has another identity, or was tampered with.
        """
        self._repair()
        done = self.ranks.agree(set(self._read()))
        progress(len([place for place in done if place < n]))
        for run in self.ranks.share(list(_missing(done, n, size))):
            self._append(run, work(run))
            progress(len(run))
        self.ranks.agree(None)  # every rank's share is on disk
        results = self.ranks.agree(self._read())
        return [results[place] for place in range(n)]

    def remove(self) -> None:
        """Delete the folder, including what other kinds of work wrote there."""
        if self.ranks.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.ranks.agree(None)

    def _append(self, run: range, results: list[dict]) -> None:
        if not self.ranks.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [{"place": place, **result} for place, result in zip(run, results, strict=True)]
        if not self.path.is_file():
            lines.insert(0, {"schema": SCHEMA, "identity": hidden(self.identity), "versions": versions()})
        # Opened anew each time, since on a network file system others see a file once it is closed; in one write, so
        # that a kill falls before or after it.
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _compare_versions(self, then: dict | None) -> None:
        now = versions()
        if isinstance(then, dict):  # older journals have none
            self.other_versions |= {name: then[name] for name in then if then[name] != now.get(name)}

    def _repair(self) -> None:
        """Cut off the half-written line that a kill left at the end of this rank's file."""
        if not self.path.is_file():
            return
        whole = _whole_lines(self.path.read_bytes())
        if not whole:
            self.path.unlink()
        elif len(whole) < self.path.stat().st_size:
            os.truncate(self.path, len(whole))

    def _read(self) -> dict[int, dict]:
        """The results of all ranks on disk, by item number."""
        results: dict[int, dict] = {}
        for path in sorted(self.folder.glob(f"{self.name}-*.jsonl")):
            lines = _whole_lines(path.read_bytes()).removesuffix(b"\n").split(b"\n")
            for number, line in enumerate(lines if lines != [b""] else [], 1):
                try:
                    record = json.loads(line)
                    if number > 1:
                        results.setdefault(int(record["place"]), record)
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{path}:{number}: expected a JSON object with 'place', found something broken; delete the "
                        f"file to do its work again."
                    ) from None
                if number == 1:
                    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                        raise UserError(f"{path}: expected schema '{SCHEMA}' in its first line, found another.")
                    if not isinstance(record.get("identity"), dict):
                        raise UserError(f"{path}: expected an 'identity' in its first line, found none.")
                    refuse_other(self.folder, record["identity"], self.identity)
                    self._compare_versions(record.get("versions"))
        return results


def _whole_lines(content: bytes) -> bytes:
    """The content up to the last whole line; a kill may have left a last line that has no end or is no JSON."""
    content = content[: content.rfind(b"\n") + 1]
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    try:
        json.loads(last)
    except ValueError:
        return content[: -len(last)] if last else content
    return content


def _missing(done: set[int], n: int, size: int) -> Iterator[range]:
    """Runs of items that are not done; they never cross a multiple of ``size``, so that batches are cut alike after a
    kill."""
    for start in range(0, n, size):
        first = None
        for place in range(start, min(start + size, n) + 1):
            missing = place < min(start + size, n) and place not in done
            if missing and first is None:
                first = place
            elif not missing and first is not None:
                yield range(first, place)
                first = None
