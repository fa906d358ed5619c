"""The order of the training rows: a pure function of (seed, epoch), independent of ranks and batching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from stabledllm.data.rows import TokenRow, collate
from stabledllm.noise.streams import Key, Stream


class EpochOrder(Sampler):
    """Yields ``(row, place)`` for every row of an epoch, where ``place`` is the row's place in the epoch's order.

    The place travels with the row, so that a row that a sharded loader repeats to even out the ranks is recognised on
    whichever rank it ends. The epoch follows from the optimizer step, so that a resumed run continues the same order.

    Args:
        rows: number of training rows. step_rows: rows in a full optimizer step.
        step: returns the number of optimizer steps done.
        lengths: length of every row; with them the rows of one step come longest first, so that its micro-batches hold
            rows of near-equal length. Which rows a step has, and the place of each, do not change.
    """

    def __init__(
        self, rows: int, step_rows: int, seed: int, step: Callable[[], int], lengths: Sequence[int] | None = None
    ):
        self.rows, self.step_rows, self.seed, self.step, self.lengths = rows, step_rows, seed, step, lengths

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.step() // math.ceil(self.rows / self.step_rows)
        order = Key(self.seed, epoch).permutation(Stream.DATA, self.rows, torch.device("cpu"))
        return self._tickets(order)

    def _tickets(self, order: Tensor) -> Iterator[tuple[int, int]]:
        """The tickets of one step after another, so that millions of rows never are as many Python objects at once."""
        for start in range(0, len(order), self.step_rows):
            step = [(row, start + i) for i, row in enumerate(order[start : start + self.step_rows].tolist())]
            yield from step if self.lengths is None else sorted(step, key=lambda t: (-self.lengths[t[0]], t[1]))


class RoundOrder(EpochOrder):
    """The same where several steps in turn have the same rows (a round): each step's tickets come ``inner`` times.

    A round is always full: the rows that are left at the end of an epoch, others in each, wait for the next.

    Args:
        inner: steps of a round.
    """

    def __init__(self, rows: int, step_rows: int, seed: int, step: Callable[[], int], inner: int = 1):
        super().__init__(rows, step_rows, seed, step)
        self.inner, self.rounds = inner, rows // step_rows

    def __len__(self) -> int:
        return self.rounds * self.step_rows * self.inner

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.step() // (self.rounds * self.inner)
        order = Key(self.seed, epoch).permutation(Stream.DATA, self.rows, torch.device("cpu"))
        tickets = list(self._tickets(order[: self.rounds * self.step_rows]))
        for start in range(0, len(tickets), self.step_rows):
            yield from tickets[start : start + self.step_rows] * self.inner


class RowDataset(Dataset):
    """Token rows, indexed by ``(row, place)``."""

    def __init__(self, rows: list[TokenRow]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[TokenRow, int]:
        return self.rows[ticket[0]], ticket[1]


class RowCollator:
    """Pads rows into a batch and carries their places along; draws nothing.

    With ``captions`` the batch also holds the rows of images without their captions, as ``bare_input_ids`` and
    ``bare_attention_mask``; which of the two a step sees is drawn later, by the row's position in the step.
    """

    def __init__(self, pad_id: int, *, syrm: bool = False, captions: bool = False):
        self.pad_id, self.syrm, self.captions = pad_id, syrm, captions

    def __call__(self, items: list[tuple[TokenRow, int]]) -> dict:
        rows = [row for row, _ in items]
        batch = collate(rows, self.pad_id, syrm=self.syrm)
        if self.captions:
            bare = collate([row.without_caption() for row in rows], self.pad_id)
            batch |= {f"bare_{name}": bare[name] for name in ("input_ids", "attention_mask")}
        return batch | {"place": torch.tensor([place for _, place in items])}
