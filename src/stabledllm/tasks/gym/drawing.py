"""Items of a set by split, so that no item of one split, whatever the seed, is in another.

Item ``i`` of the package's sets is made with the seed ``seed + i``: two seeds that are closer than ``size`` share
items, shifted. So the seeds of users are spread far apart here, and an item's split is a hash of its question, or of
its template where a set has some (:mod:`stabledllm.tasks.gym.gsm_symbolic`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from stabledllm.errors import UserError
from stabledllm.tasks.gym.gsm_symbolic import template_name
from stabledllm.tasks.gym.package import made, quiet, registered
from stabledllm.tasks.gym.spec import GSM_SYMBOLIC, GymSpec, config_of, parse

_SPREAD = 1 << 20
"""Distance between the first items of two seeds, and the most items that are drawn under one seed."""
_CHUNK = 256
"""Items of one set of the package: some sets make them all at once, and then the number decides what they are."""
_OF_ITEMS = ("test", "validation") + ("train",) * 6
_OF_TEMPLATES = ("test", "test", "validation") + ("train",) * 5
"""More for the test than of items: a score on few templates says little about others."""
_MOST_DRAWN = 40
"""Items drawn without a new one among them, for each bucket, before a set is taken to have no more."""


def split_of(question: str) -> str:
    """The split that an item belongs to, by its question alone."""
    return _bucket(question, _OF_ITEMS)


def split_of_template(name: str) -> str:
    """The split that all items of a template belong to, by its name alone."""
    return _bucket(name, _OF_TEMPLATES)


def _bucket(text: str, splits: Sequence[str]) -> str:
    return splits[hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % len(splits)]


def different_items(spec: GymSpec, split: str, rows: int, seed: int) -> list[dict]:
    """The first ``rows`` items of a split, none of whose questions is equal to another's; all there are if fewer.

    Item i is the same however many are asked for.

    Raises:
        UserError: there is no such item, or the set makes none with these keys.
    """
    found: dict[str, dict] = {}
    without_new = 0
    for item in _items(spec, split, seed):
        without_new += 1
        if item is not None and item["question"] not in found:
            found[item["question"]] = item
            without_new = 0
        if len(found) == rows or without_new > max(_MOST_DRAWN * len(_OF_ITEMS), 2 * len(found)):
            break
    if not found:
        raise UserError(
            f"data '{spec.text}': expected {split} items, found none among the first {without_new} that are drawn; "
            f"change its keys so that there are more."
        )
    return list(found.values())


def _items(spec: GymSpec, split: str, seed: int) -> Iterator[dict | None]:
    """The items drawn under a seed, in order; None where one belongs to another split."""
    for first in range(seed * _SPREAD, (seed + 1) * _SPREAD, _CHUNK):
        chunk = _chunk(spec.text, first)
        for place in range(_CHUNK):
            if template := chunk.template(place):
                yield chunk.item(place) if split_of_template(template) == split else None
            else:
                item = chunk.item(place)
                yield item if split_of(item["question"]) == split else None


class _Chunk:
    """One set of the package, whose items are made once."""

    def __init__(self, spec: GymSpec, first: int):
        self._spec, self._first, self._items = spec, first, {}
        with _named(spec, first):
            self._set = made(registered(spec.text)[spec.name][0], config_of(spec, first, _CHUNK))

    def template(self, place: int) -> str | None:
        """The name of the template that an item is made from; None where the set has none."""
        return template_name(self._set.task_indices[place]) if self._spec.name == GSM_SYMBOLIC else None

    def item(self, place: int) -> dict:
        """The package's item: ``question``, ``answer``, ``metadata``; with ``template`` where the set has some."""
        if place not in self._items:
            with _named(self._spec, self._first + place), quiet():
                item = self._set[place]
            template = self.template(place)
            self._items[place] = item if template is None else item | {"template": template}
        return self._items[place]


@contextmanager
def _named(spec: GymSpec, seed: int) -> Iterator[None]:
    """What the package raises while it makes items, as a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each set raises its own
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"data '{spec.text}': expected '{spec.name}' to make an item of seed {seed}, found that it cannot "
            f"({reason}); change its keys."
        ) from None


@lru_cache(maxsize=32)
def _chunk(text: str, first: int) -> _Chunk:
    """The items from ``first`` on: kept, since the three splits are drawn from the same ones."""
    return _Chunk(parse(text.partition(":")[2]), first)
