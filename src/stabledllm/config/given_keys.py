"""Groups of keys in a tree of settings: those that are there, that are known, and that are not as by default."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def group_of(tree: dict, key: str) -> dict:
    """The keys below a key; none where it holds no group."""
    return tree[key] if isinstance(tree.get(key), dict) else {}


def known(values: Any, group: type[BaseModel]) -> dict:
    """The values of keys that a group has."""
    values = values if isinstance(values, dict) else {}
    return {key: value for key, value in values.items() if key in group.model_fields}


def changed(values: dict, defaults: BaseModel) -> dict:
    """The values that differ from the defaults of their group."""
    out = {}
    for key, value in values.items():
        default = getattr(defaults, key)
        if isinstance(default, BaseModel):
            value = changed(known(value, type(default)), default)
            default = {}
        if value != default:
            out[key] = value
    return out
