"""A row of tokens as a person reads it: decoded, with what is given and what is trained told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

LONGEST = 320
"""Most characters of a part of a row; longer ones are shortened in the middle."""
MOST_PARTS = 9
"""Most parts that are shown of a row: one with flags on its parts may have hundreds."""
PROMPT, RESPONSE, GIVEN = "prompt", "response", "given"
STYLES = {PROMPT: "cyan", RESPONSE: "green", GIVEN: "yellow"}
_SPECIAL = "dim"


@dataclass(frozen=True)
class Part:
    """A stretch of a row. ``kind``: prompt, response (what is trained), given (within or behind a response), or ``...``
    for parts that are left out."""

    kind: str
    text: Text


def parts_of(row, tokenizer) -> list[Part]:
    """The row's parts in order, each decoded; special tokens stand by their names, images by their number of tokens.

    Long parts are shortened in the middle, and so are more than :data:`MOST_PARTS`.

    Args:
        row: a :class:`~stabledllm.data.rows.TokenRow`, or one of images.
    """
    ids = row.input_ids
    kinds = _kinds(row, len(ids))
    found = []
    for kind, places in groupby(range(len(ids)), key=kinds.__getitem__):
        text = Text(style=STYLES[kind])
        for shown, special in _pieces([ids[place] for place in places], tokenizer):
            text.append(shown, style=_SPECIAL if special else None)
        found.append(Part(kind, _shortened(text)))
    if (left_out := len(found) - MOST_PARTS) <= 1:
        return found
    tail = MOST_PARTS // 3
    note = Part("...", Text(f"{left_out} parts are not shown", style="bold"))
    return [*found[: MOST_PARTS - tail], note, *found[-tail:]]


def _kinds(row, length: int) -> list[str]:
    given = set(getattr(row, "given", ()))
    end = length - row.tail
    return [
        PROMPT if place < row.prompt_length else GIVEN if place in given or place >= end else RESPONSE
        for place in range(length)
    ]


def _pieces(ids: Sequence[int], tokenizer) -> Iterator[tuple[str, bool]]:
    """The text of runs of tokens, and whether it stands for special tokens."""
    names = [_name(token, tokenizer) for token in ids]
    start = 0
    for name, run in groupby(names):
        end = start + len(list(run))
        count = end - start
        if name is None:
            yield plain_text(tokenizer.decode(ids[start:end]), longest=None), False
        elif name == _IMAGE:
            yield f"[{count} image token{'s' if count > 1 else ''}]", True
        else:
            yield plain_text(name) + (f" x {count} " if count > 1 else ""), True
        start = end


_IMAGE = "image"


def _name(token: int, tokenizer) -> str | None:
    """The name of a special token, ``image`` for a token of an image, None for text."""
    image = None
    with suppress(UserError):  # a model for pictures whose tokenizer lacks their marks can be trained on text
        image = tokenizer.image_tokens
    if image is not None and (name := image.name_of(token)) is not None:
        return name
    return tokenizer.special_name(token)


def _shortened(text: Text) -> Text:
    if len(text) <= LONGEST:
        return text
    head, tail = LONGEST * 2 // 3, LONGEST // 3
    left_out = f" ... {len(text) - head - tail:,} characters ... "
    return Text.assemble(text[:head], (left_out, "bold"), text[-tail:])
