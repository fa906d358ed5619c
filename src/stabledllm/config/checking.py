"""Turns the tree that a recipe holds into typed settings, or refuses the first thing wrong in it in one sentence."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from stabledllm.config.trainer_keys import TrainerSettings, refusal
from stabledllm.config.written import Written
from stabledllm.errors import UserError, did_you_mean
from stabledllm.plain_text import plain_text
from stabledllm.runtime.secrets import hidden

Settings = TypeVar("Settings", bound=BaseModel)


def check(tree: dict, kind: type[Settings], what: str) -> Settings:
    """The typed settings that a tree of keys holds.

    Raises:
        UserError: says where the value was written, its key, what was expected and what was found.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    path = _in_tree(tree, first["loc"])
    key, where = ".".join(map(str, path)), _place(tree, path) or what
    if first["type"] == "extra_forbidden":
        name, group = str(path[-1]), _group(kind, path[:-1])
        if group is TrainerSettings:
            raise UserError(f"{where}: key '{plain_text(key)}': {refusal(name)}.")
        raise UserError(f"{where}: unknown key '{plain_text(key)}'{did_you_mean(name, group.model_fields)}.")
    expectation = _expected(first["msg"])
    if "found" not in expectation:
        expectation += f", found {_shown(first['input'], key)}"
    raise UserError(f"{where}: key '{plain_text(key)}': {expectation}.")


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


def _expected(message: str) -> str:
    message = message.replace("Input should be ", "expected ").replace("a valid ", "a ")
    message = message.replace("expected greater", "expected a number greater").replace(
        "expected less", "expected a number less"
    )
    message = message.replace("a dictionary or instance of", "keys and values of")
    return message[0].lower() + message[1:]


def _shown(value: Any, key: str) -> str:
    """The value in a few words: long ones are cut, secrets hidden."""
    if isinstance(value, Written):
        value = None if value.null and not value.typed else str(value)
    if isinstance(value, dict | list):
        return "keys and values" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**50:
        return "a number of more than 50 digits"
    value = hidden(value, key)
    return "null" if value is None else plain_text(repr(value), longest=120)
