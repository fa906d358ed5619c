"""What is told of the rows of a rebuilt step, and of the blocks and tokens of the one that leads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Largest:
    """The view in which a row, or a block, has its largest weight; and what an exact count makes of the same draw.

    ``exact_masked``, ``exact_weight``: of leading rows alone, and None where the method cannot take exact counts, or
    has them.
    """

    views: int
    """Views that go through the model."""
    masked: int
    exact_masked: int | None = None
    exact_weight: float | None = None


@dataclass
class OfRow:
    """A row of the step. ``share``, ``norm``: of its gradient; None where the step's is not finite."""

    position: int
    origin: str
    share: float | None
    norm: float | None
    loss: float
    """Its loss under the draw of the step, in nats."""
    t: float | None
    """None in blocks, each of which has its own."""
    masked: int
    """Over its views."""
    maskable: int
    weight: float
    """The largest of its masked tokens: 1 where a row is masked whole."""
    nll: float
    """Mean cross-entropy of its masked tokens, in nats; 0 where none is masked."""
    usual_nll: float
    """Its NLL per token under draws that any row might get."""
    largest: Largest
    usual_norm: float | None = None
    """The mean norm of its gradient under these; of leading rows alone."""


@dataclass
class Part:
    """A block or a token of the leading row. ``name``: the block's number, or the token's text."""

    name: str
    share: float
    weight: float
    t: float | None = None
    masked: int | None = None
    maskable: int | None = None
    place: int | None = None
    nll: float | None = None
    largest: Largest | None = None
