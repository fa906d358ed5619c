"""Rows of tokens, one by one and in flat arrays, which take five bytes per token where Python's integers take fifty."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stabledllm.errors import UserError


@dataclass(frozen=True)
class TokenRow:
    """One encoded example. ``prompt_length`` tokens are given, the rest is the response."""

    input_ids: list[int]
    prompt_length: int
    delimiter: list[int] = field(default_factory=list)
    """Indices of response tokens that are answer delimiters (ISAD)."""
    syntax: list[int] = field(default_factory=list)
    """Indices of prompt tokens that are syntax (SyRM)."""
    origin: str = ""
    hidden: int = 0
    """Number of leading tokens that nothing attends to (MMaDA's padding of captions)."""
    tail: int = 0
    """Number of last tokens that are given, like the prompt (the end of an image)."""
    given: list[int] = field(default_factory=list)
    """Indices of tokens within the response that are given, like the prompt (parts of it that are not trained)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def response_length(self) -> int:
        """The number of tokens that are trained."""
        return len(self.input_ids) - self.prompt_length - self.tail - len(self.given)

    def maskable_count(self, syrm: bool = False) -> int:
        """P, the number of tokens that :func:`~stabledllm.data.rows.collate` marks as maskable."""
        return self.response_length + (len(self.syntax) if syrm else 0)


COLUMNS = ("input_ids", "delimiter", "syntax", "given", "origin")
"""The lists of a row, in the order in which they are stored."""
_BLOCK = 1 << 22
"""Numbers searched at once, so that a search in a memory map never holds all of it."""


@dataclass(frozen=True)
class Ragged:
    """Lists of numbers (or bytes) of unequal length, end to end. ``ends``: where each begins, and the last one ends."""

    values: np.ndarray
    ends: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.ends[i] : self.ends[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends)


class TokenRows(Sequence[TokenRow]):
    """Rows stored in a few flat arrays; a :class:`TokenRow` is made whenever one is asked for.

    It is made by :class:`RowsBuilder`.

    Args:
        columns: the lists of all rows, by the names in :data:`COLUMNS`. counts: prompt_length, hidden and tail, shape
            (rows, 3). order: indices of its rows in the arrays; None for all of them in turn.
    """

    def __init__(self, columns: dict[str, Ragged], counts: np.ndarray, order: np.ndarray | None = None):
        self.columns, self.counts = columns, counts
        self._order = np.arange(len(counts)) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.in_order(self._order[place])
        i = self._order[place]
        prompt, hidden, tail = self.counts[i].tolist()
        origin = self.columns["origin"][i].tobytes().decode()
        lists = {name: self.columns[name][i].tolist() for name in COLUMNS if name != "origin"}
        return TokenRow(**lists, prompt_length=prompt, origin=origin, hidden=hidden, tail=tail)

    def in_order(self, order: np.ndarray) -> TokenRows:
        """Other rows of the same arrays, by their indices in them."""
        return TokenRows(self.columns, self.counts, order)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, int64."""
        return self.columns["input_ids"].lengths[self._order]

    def maskable_counts(self, syrm: bool = False) -> np.ndarray:
        """P of each row, int64, the same as :meth:`TokenRow.maskable_count`."""
        prompt, _, tail = self.counts[self._order].astype(np.int64).T
        trained = self.lengths - prompt - tail - self.columns["given"].lengths[self._order]
        return trained + (self.columns["syntax"].lengths[self._order] if syrm else 0)

    def holding(self, token: int) -> int | None:
        """The index of the first row that holds a token; None if no row does."""
        ids = self.columns["input_ids"]
        blocks = (np.flatnonzero(ids.values[i : i + _BLOCK] == token) + i for i in range(0, len(ids.values), _BLOCK))
        rows = [np.unique(np.searchsorted(ids.ends, at, side="right") - 1) for at in blocks if at.size]
        places = np.flatnonzero(np.isin(self._order, np.concatenate(rows))) if rows else np.empty(0)
        return int(places[0]) if places.size else None

    def any_marked(self, name: str) -> bool:
        """Whether any row has tokens marked ``delimiter``, ``syntax`` or ``given``."""
        return bool(self.columns[name].lengths[self._order].any())


class RowsBuilder:
    """A builder that takes rows one at a time and stores them in flat arrays."""

    def __init__(self, rows: Sequence[TokenRow] = ()):
        self._flat = {name: bytearray() if name == "origin" else array("i") for name in COLUMNS}
        self._ends = {name: array("q", [0]) for name in self._flat}
        self._counts = array("i")
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._counts) // 3

    def add(self, row: TokenRow) -> None:
        """Store one more row."""
        for name, flat in self._flat.items():
            part = getattr(row, name)
            flat.extend(part.encode() if name == "origin" else part)
            self._ends[name].append(len(flat))
        self._counts.extend((row.prompt_length, row.hidden, row.tail))

    def rows(self) -> TokenRows:
        """All rows so far; none can be added after that."""
        kinds = {"origin": np.uint8}
        columns = {
            name: Ragged(np.frombuffer(flat, kinds.get(name, np.int32)), np.frombuffer(self._ends[name], np.int64))
            for name, flat in self._flat.items()
        }
        return TokenRows(columns, np.frombuffer(self._counts, np.int32).reshape(-1, 3))


def lengths_of(rows: Sequence) -> list[int]:
    """The number of tokens of each row, without making the rows."""
    return rows.lengths.tolist() if isinstance(rows, TokenRows) else [len(row) for row in rows]


def maskable_counts_of(rows: Sequence, *, syrm: bool) -> list[int]:
    """P of each row, without making the rows."""
    if isinstance(rows, TokenRows):
        return rows.maskable_counts(syrm).tolist()
    return [row.maskable_count(syrm=syrm) for row in rows]


def any_marked(rows: Sequence, name: str) -> bool:
    """Whether any row has tokens marked ``delimiter``, ``syntax`` or ``given``; rows of images have none given."""
    return rows.any_marked(name) if isinstance(rows, TokenRows) else any(getattr(row, name, None) for row in rows)


def refuse_given(rows: Sequence) -> None:
    """Refuse rows with given tokens within their response, which have no place in a form of blocks.

    Raises:
        UserError: there is one; the message names its origin.
    """
    if any_marked(rows, "given"):
        row = next(row for row in rows if getattr(row, "given", None))
        raise UserError(
            f"{row.origin or 'a row'}: expected an answer that is trained as a whole under block_size, found one with "
            f"parts that are not trained."
        )


def refuse_masked_rows(rows: Sequence, mask_id: int | None) -> None:
    """Refuse rows that hold the mask token, however they were made; rows of images never do.

    Raises:
        UserError: naming the row's origin, or its number where it has none.
    """
    if mask_id is None:
        return
    if isinstance(rows, TokenRows):
        bad_row = rows.holding(mask_id)
    else:
        plain = ((i, row) for i, row in enumerate(rows) if isinstance(row, TokenRow))
        bad_row = next((i for i, row in plain if mask_id in row.input_ids), None)
    if bad_row is not None:
        where = rows[bad_row].origin or f"row {bad_row}"
        raise UserError(f"{where}: expected no mask token within the row, found its id {mask_id}.")
