"""Turns the tree that a recipe holds into typed settings, or tells everything wrong with its keys and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from stabledllm.config.instead import instead_of_key, instead_of_nothing, instead_of_value
from stabledllm.config.written import Written
from stabledllm.errors import Mistakes
from stabledllm.plain_text import plain_text
from stabledllm.runtime.secrets import hidden

Settings = TypeVar("Settings", bound=BaseModel)
_MOST_MENDED = 20
"""Most rounds in which keys with a mistake are left out, so that what remains can be read."""


@dataclass(frozen=True)
class Read:
    """What a tree of keys holds: its settings, and a sentence on everything wrong with it.

    ``settings`` has the defaults in place of what was wrong; it is None where nothing could be read. ``wrong``: the
    dotted keys that were wrong. ``told``: lines for the user on settings that came from elsewhere.
    """

    settings: BaseModel | None
    sentences: list[str]
    wrong: list[str]
    told: list[str] = field(default_factory=list)


def check(tree: dict, kind: type[Settings], what: str) -> Settings:
    """The typed settings that a tree of keys holds.

    Raises:
        Mistakes: of every mistake where the value was written, its key, what was expected and what was found.
    """
    read = read_settings(tree, kind, what)
    if read.sentences:
        raise Mistakes(read.sentences)
    return read.settings


def read_settings(tree: dict, kind: type[BaseModel], what: str) -> Read:
    """The settings that a tree holds, and what is wrong with it.

    Args:
        what: the words that begin a sentence on a value that stands in no file.
    """
    sentences, wrong = [], []
    for _ in range(_MOST_MENDED):
        try:
            return Read(kind.model_validate(tree), sentences, wrong)
        except ValidationError as error:
            found: dict[tuple, dict] = {}
            for each in error.errors(include_url=False):
                found.setdefault(_in_tree(tree, each["loc"]), each)  # the first of a union's arms speaks for all
        # A key that was told and taken out is missed now, where it is needed.
        found = {path: each for path, each in found.items() if ".".join(map(str, path)) not in wrong}
        if not found:
            break
        order = [*tree, *kind.model_fields]  # mistakes are told in the order of the recipe, not of our fields
        for path, each in sorted(found.items(), key=lambda one: order.index(one[0][0]) if one[0] else -1):
            sentences.append(_sentence(tree, path, each, kind, what))
            wrong.append(".".join(map(str, path)))
        if () in found:
            break
        for path in found:
            tree = _without(tree, path)
    return Read(None, sentences, wrong)


def _sentence(tree: dict, path: tuple, error: dict, kind: type[BaseModel], what: str) -> str:
    key, where = _key(tree, path, error), _place(tree, path) or what
    shown = f"{where}: key '{plain_text(key)}'"
    if error["type"] == "extra_forbidden":
        named = path if key == ".".join(map(str, path)) else tuple(key.split("."))  # within a mapping that was typed
        clause = instead_of_key(named, kind, _group(kind, named[:-1]))
        return f"{where}: unknown key '{plain_text(key)}'{clause}." if clause[:1] != ":" else f"{shown}{clause}."
    if (value := error["input"]) is None or (isinstance(value, Written) and value.null and not value.typed):
        return f"{shown}: expected a value, found none{instead_of_nothing(key)}."
    expectation = _expected(error["msg"])
    if "found" not in expectation:
        expectation += f", found {_shown(error['input'], key)}"
    hint = instead_of_value(key, error["input"], _annotation(kind, path), kind)
    return f"{shown}: {expectation}{hint}."


def _key(tree: dict, path: tuple, error: dict) -> str:
    """The dotted key of a value; within a list or mapping that was typed as one, its place in it."""
    for part in path:
        tree = tree[part] if isinstance(tree, dict | list) else tree
    within = error["loc"] if isinstance(tree, Written) and tree[:1] == "{" else path
    return ".".join(map(str, within))


def _without(tree: dict, path: Sequence) -> dict:
    """A copy of the tree without the key at the path; a list that holds a mistake goes as a whole."""
    first, *rest = path
    if rest and isinstance(tree.get(first), dict):
        return tree | {first: _without(tree[first], rest)}
    return {key: value for key, value in tree.items() if key != first}


def _in_tree(tree: Any, path: tuple) -> tuple:
    """The part of an error's path that leads to a value; what follows it names a type of a union."""
    for depth, part in enumerate(path):
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return path[:depth] or path
    return path


def _place(tree: Any, path: tuple) -> str:
    """The file and line of the last written value on the path; empty for an override."""
    place = ""
    for part in path:
        if isinstance(tree, dict):
            key = next((key for key in tree if key == part), "")
            place = key.place if isinstance(key, Written) else place
            tree = tree[part]
        else:
            tree = tree[part]
        if isinstance(tree, Written):
            place = "" if tree.typed else tree.place
    return place


def _group(kind: type[BaseModel], path: tuple) -> type[BaseModel]:
    """The class of the group of settings at a path."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        # An optional group of settings is a union of them and None.
        kind = next((k for k in (annotation, *get_args(annotation)) if hasattr(k, "model_fields")), kind)
    return kind


def _annotation(kind: type[BaseModel], path: tuple) -> Any:
    """The type of the value at a path; None for a place within a list or a mapping."""
    group = _group(kind, path[:-1]) if path else kind
    return group.model_fields[path[-1]].annotation if path and path[-1] in group.model_fields else None


def _expected(message: str) -> str:
    message = (
        message.replace("Input should be ", "expected ")
        .replace("a valid ", "a ")
        .replace("a integer", "a whole number")
    )
    message = message.replace("expected greater", "expected a number greater").replace(
        "expected less", "expected a number less"
    )
    message = message.replace("String should have", "expected text of")
    message = message.replace(
        "List should have at least 1 item after validation, not 0", "expected a list of at least 1"
    )
    message = re.sub(r"a dictionary or instance of \w+", "keys and values", message)
    return message[0].lower() + message[1:]


def _shown(value: Any, key: str) -> str:
    """The value in a few words: long ones are cut, secrets hidden."""
    if isinstance(value, Written):
        value = None if value.null and not value.typed else str(value)
    if isinstance(value, dict | list):
        return "keys and values" if isinstance(value, dict) else "a list" if value else "an empty list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**50:
        return "a number of more than 50 digits"
    value = hidden(value, key)
    return "null" if value is None else plain_text(repr(value), longest=120)
