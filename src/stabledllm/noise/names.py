"""The grammar of method strings such as ``strats+ppots+mirror``: which strings name parts that go together.

This file loads no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from stabledllm.errors import UserError, did_you_mean
from stabledllm.noise.parts import AUTOREGRESSIVE, PARTS, SLOTS, STANDARD, VIEWS, Part


@dataclass(frozen=True)
class Named:
    """A part as it is named in a method string.

    >>> Named("partition4", PARTS["partition"], views=4) == find_part("partition4")
    True
    """

    text: str
    """The name with its number, if any: ``partition4``."""
    part: Part
    views: int
    """The views of a row that it makes at most; 1 where it leaves them as they are."""


def find_part(text: str) -> Named | None:
    """The part of that name, for example ``partition`` or ``partition4``; None for an unknown name.

    >>> find_part("partition").views, find_part("mirror2")
    (3, None)
    """
    match = re.fullmatch(r"([a-z]+)(\d+)", text)
    if match and (part := PARTS.get(match[1])) and part.number:
        return Named(text, part, int(match[2]))
    return (part := PARTS.get(text)) and Named(text, part, part.number or 1 + (VIEWS in part.fills))


@lru_cache(maxsize=1024)
def read_parts(text: str) -> tuple[Named, ...]:
    """The parts that a method string names, in canonical order; none for ``standard``.

    Raises:
        UserError: an unknown part, a part given twice, two parts for one slot, or two that contradict.

    >>> [named.text for named in read_parts("mirror+ppots+strats")]
    ['strats', 'ppots', 'mirror']
    """
    names = [name.strip() for name in text.split("+")]
    if names in ([STANDARD], [AUTOREGRESSIVE]):
        return tuple(filter(None, map(find_part, names)))
    chosen: dict[str, Named] = {}
    for name in names:
        if name in (STANDARD, AUTOREGRESSIVE):
            raise UserError(f"method '{text}': '{name}' stands alone, found it combined with other parts.")
        named = find_part(name)
        if named is None:
            joined = re.sub(r"[\s,;/|&_]+", "+", name.strip("[]() "))
            if all(map(find_part, name.split("-"))):
                joined = name.replace("-", "+")
            meant = f"; write {joined}" if joined != name else did_you_mean(name, (STANDARD, *PARTS))
            raise UserError(f"method '{text}': unknown part '{name}'{meant}.")
        for slot in named.part.fills:
            if other := chosen.get(slot):
                raise UserError(f"method '{text}': '{other.text}' and '{name}' contradict: both choose the {slot}.")
            chosen[slot] = named
    parts = tuple(dict.fromkeys(chosen[slot] for slot in SLOTS if slot in chosen))
    for one, other in permutations(parts, 2):
        if why := one.part.contradicts.get(other.part.name):
            raise UserError(f"method '{text}': '{one.text}' and '{other.text}' contradict: {why}.")
    return parts
