"""Turns ``--KEY VALUE`` into ``KEY=VALUE``, by the table of a command's keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stabledllm.cli.grammar import Grammar
from stabledllm.errors import Gathered, UserError
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from stabledllm.config.key_table import Key

_TRUTHS = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}
_PLAIN = re.compile(r"[\w.+-]+")
"""Items of a list that YAML reads as they are."""


def without_dashes(
    words: Sequence[str], grammar: Grammar, own: Collection[str], valued: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The words with every ``--KEY VALUE`` as ``KEY=VALUE``, and a note on each name that is another program's.

    Options of the command itself stay as they are, and so does everything after ``--``. Of an option that is repeated
    the last value counts, as on any command line.

    Args:
        own: the command's own options. valued: those of them that a value follows.

    Raises:
        Mistakes: names every unknown option, with the nearest, and every key without its value.
    """
    reader = _Reader(list(words), grammar, own, valued)
    read = _last_of_each(reader.words())
    reader.gathered.refuse()
    return read, reader.notes


class _Setting(str):
    """A setting that was typed as an option."""


def _last_of_each(words: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for word in words:
        if isinstance(word, _Setting):
            key = word.partition("=")[0] + "="
            kept = [one for one in kept if not (isinstance(one, _Setting) and one.startswith(key))]
        kept.append(word)
    return kept


class _Reader:
    def __init__(self, words: list[str], grammar: Grammar, own: Collection[str], valued: Collection[str]):
        self.left, self.grammar, self.own, self.valued = words, grammar, own, valued
        self.gathered, self.notes = Gathered(), []

    def words(self) -> Iterator[str]:
        while self.left:
            word = self.left.pop(0)
            if word == "--":
                yield from (word, *self.left)
                return
            option, equals, _ = word.partition("=")
            if not word.startswith("--") or option in self.own:
                yield word
                if option in self.valued and not equals and self.left:
                    yield self.left.pop(0)
                continue
            with self.gathered.check():
                yield _Setting(self._setting(word))

    def _setting(self, word: str) -> str:
        option, equals, value = word.partition("=")
        typed = option[2:].replace("-", "_")
        key, name = self._named(typed)
        if key is None and typed.startswith("no_"):
            switch, name = self._named(typed.removeprefix("no_"))
            if switch is not None and switch.is_switch and not equals:
                return f"{name}=false"
        if key is None:
            if not equals and self.left and not self.left[0].startswith("--"):
                self.left.pop(0)  # what was meant as its value is no word of its own
            raise UserError(f"unknown option '{plain_text(option)}'{instead(typed, self.grammar, self.own)}.")
        value = value if equals else self._value(option, key)
        if key.is_group and not value.startswith("{") and (short := self.grammar.short_for(name)):
            name, key = short, self.grammar.keys[short]
        return f"{name}={_as_list(value) if key.is_list and value not in key.choices else value}"

    def _named(self, typed: str) -> tuple[Key | None, str]:
        """The key that a name without dashes stands for, and the key's name as typed or in full."""
        if (key := self.grammar.key(typed)) is not None:
            return key, typed
        short = self.grammar.short_for(typed)
        if short is None and (short := self.grammar.of_others(typed)):
            self.notes.append(f"note: --{typed} is read as {short}")
        return (self.grammar.keys[short], short) if short else (None, typed)

    def _value(self, option: str, key: Key) -> str:
        following = self.left[0] if self.left else ""
        if key.is_switch:
            return _TRUTHS[self.left.pop(0)] if following in _TRUTHS else "true"
        if not self.left or following.startswith("--"):
            found = f"'{plain_text(following)}'" if self.left else "none"
            raise UserError(f"option '{option}': expected a value, found {found}; write {_taken(option, key)}.")
        return self.left.pop(0)


def _taken(option: str, key: Key) -> str:
    """An option as it is typed with its value; for a group of keys, one of them."""
    if not key.is_group:
        return f"{option} {key.takes}"
    from stabledllm.config.instead import OF_GROUPS

    return f"{option}.{OF_GROUPS.get(key.name.removeprefix('base.'), 'NAME')} VALUE"


def _as_list(value: str) -> str:
    """A list as YAML has it, of one that is written with commas."""
    if value.startswith("[") or value in ("", "null"):
        return value
    items = [item.strip() for item in value.split(",")]
    quoted = [item if _PLAIN.fullmatch(item) else "'" + item.replace("'", "''") + "'" for item in items]
    return f"[{','.join(quoted)}]"


_QUICK = {
    "TrainSettings": "it is for measurements; for a short run write steps=20 out=FOLDER",
    "EvalSettings": "it is for measurements; to evaluate fewer rows write rows=20",
}
"""What to write instead of ``--quick`` where there is none, by the class of the settings."""


OF_COMMANDS = {
    "dry_run": ("train", "experiment", "fit", "decompose", "recommend", "eval", "generate"),
    "quick": ("decompose", "recommend", "fit", "experiment"),
    "wide": ("decompose", "recommend", "replay", "experiment"),
    "load": ("validate",),
    "jobs": ("experiment",),
    "devices": ("experiment", "plan", "env"),
    "wait": ("experiment",),
    "by": ("recommend",),
    "from": ("recommend", "power"),
    "image": ("generate",),
    "memory": ("plan",),
    "sharding": ("plan",),
    "longest": ("plan",),
}
"""Options that some commands have and others do not, by the name without dashes."""


def instead(typed: str, grammar: Grammar, own: Collection[str]) -> str:
    """The clause on what to write instead of an option that no command or key has."""
    from stabledllm.config.instead import instead_of_key
    from stabledllm.config.other_names import NOWHERE

    if typed == "quick" and (meant := _QUICK.get(grammar.kind.__name__)):
        return f"; {meant}"
    if typed in OF_COMMANDS and grammar.key(typed) is None:
        return f"; it is an option of {_listed(OF_COMMANDS[typed])}"
    if typed in NOWHERE:
        return f"; {NOWHERE[typed]}"
    names = [*own, *(f"--{name}" for name in (*grammar.keys, *grammar.shorts))]
    spelt = {name.replace("-", "_"): name for name in names}
    near = difflib.get_close_matches(f"__{typed}"[:200], spelt, n=1, cutoff=0.75)
    if near:
        return f" (did you mean '{spelt[near[0]]}'?)"
    return instead_of_key(tuple(typed.split(".")), grammar.kind, _group_of(typed, grammar))


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _group_of(typed: str, grammar: Grammar):
    """The class of the group of keys that a name would stand in."""
    from stabledllm.config.key_table import group_of

    kind = grammar.kind
    for part in typed.split(".")[:-1]:
        found = kind.model_fields.get(part)
        kind = (group_of(found.annotation) if found else None) or kind
    return kind
