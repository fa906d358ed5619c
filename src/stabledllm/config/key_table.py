"""The table of all keys of a kind of settings: what each takes, its default and its meaning.

The command line reads ``KEY=VALUE`` and ``--KEY VALUE`` by it, ``--help`` prints it, and the shell completes from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stabledllm.config.typed import arms_of

_SHOWN = 4
"""Most choices that are written out where a value is named by its kind."""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, the type of its value, its default, and its meaning (its docstring)."""

    name: str
    annotation: Any
    default: Any
    meaning: str
    is_group: bool = False

    @property
    def group(self) -> str:
        """The dotted name of the group that holds the key; empty for a key of no group."""
        return self.name.rpartition(".")[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The names among which a value is chosen; those of a switch are ``true`` and ``false``."""
        names = tuple(name for arm in self._arms if get_origin(arm) is Literal for name in get_args(arm))
        return ("true", "false") if self.is_switch else tuple(map(str, names))

    @property
    def is_switch(self) -> bool:
        """Whether the value is true or false."""
        return bool in self._arms

    @property
    def is_list(self) -> bool:
        """Whether the value is a list and nothing that is written as text."""
        return any(get_origin(arm) is list for arm in self._arms) and str not in self._arms

    @property
    def holds_any(self) -> bool:
        """Whether below the key stand keys that the user names."""
        return any(get_origin(arm) is dict for arm in self._arms)

    @property
    def takes(self) -> str:
        """The kind of value in a word for readers, such as ``N``, ``TEXT`` or ``even|dream|origin``."""
        if self.is_switch:
            return "true|false"
        numbers = {int, float} & set(self._arms)
        if self.choices and len(self.choices) <= _SHOWN and not self.is_list:
            return "|".join(["N"] * bool(numbers) + [*self.choices])
        if self.is_group or self.holds_any:
            return "{...}"
        if any(get_origin(arm) is list for arm in self._arms):
            return "A,B,..."
        return "NAME" if self.choices else "N" if numbers else "TEXT"

    @property
    def shown_default(self) -> str:
        """The default as one would write it; empty where there is none, or where it is a group of keys."""
        value = self.default
        if value is None or value == {} or isinstance(value, BaseModel):
            return ""
        if isinstance(value, list):
            return ",".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def _arms(self) -> list[Any]:
        return arms_of(self.annotation)


@cache
def keys_of(kind: type[BaseModel]) -> dict[str, Key]:
    """Every key of a kind of settings by its dotted name, in the order of the sources; groups stand before theirs."""
    return {key.name: key for key in _keys(kind, "", None)}


def _keys(kind: type[BaseModel], above: str, instance: BaseModel | None):
    """Yields the keys of a group.

    Args:
        instance: the group's own default, where the key that holds it has one of its own.
    """
    given = instance.model_fields_set if instance is not None else ()
    for name, field in kind.model_fields.items():
        default = getattr(instance, name) if name in given else field.default
        default = None if default is PydanticUndefined else default
        group = group_of(field.annotation)
        yield Key(above + name, field.annotation, default, _one_line(field.description), group is not None)
        if group is not None:
            yield from _keys(group, f"{above}{name}.", default if isinstance(default, group) else None)


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The class of the group of keys that a type allows; None where it allows none."""
    return next((arm for arm in arms_of(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)), None)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "").split())
