"""Writes the table of a command's settings into its ``--help``: grouped, with the kind of value and the default."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stabledllm.cli.grammar import Grammar

if TYPE_CHECKING:
    from stabledllm.config.key_table import Key

_FIRST = ("model", "data.train", "method", "methods", "steps", "epochs", "batch", "seed", "seeds", "out")
"""What most people set; these stand above the groups."""


def write_settings(grammar: Grammar, formatter) -> None:
    """Write every key: those that most people set, then group by group."""
    formatter.write_paragraph()
    formatter.write_text(
        "Settings, each as KEY=VALUE or as --KEY VALUE (in brackets the default; dashes are read as underscores):"
    )
    for title, rows in sections(grammar):
        with formatter.section(title):
            formatter.write_dl(rows)


def sections(grammar: Grammar) -> list[tuple[str, list[tuple[str, str]]]]:
    """The groups of keys by their titles; each key as ``--key KIND`` with its meaning and its default."""
    keys = grammar.keys
    base = "base." if "base" in keys and keys["base"].is_group else ""
    first = [name for name in (*_FIRST, *(base + name for name in _FIRST if base)) if name in keys]
    groups: dict[str, list[tuple[str, str]]] = {"First": [row(keys[name], grammar) for name in first]}
    for key in keys.values():
        below_trainer = key.group in ("trainer", "base.trainer")
        if key.name in first or below_trainer or (key.is_group and not _is_open(key)):
            continue
        groups.setdefault(_title(key), []).append(row(key, grammar))
    return [(title, rows) for title, rows in groups.items() if rows]


def row(key: Key, grammar: Grammar) -> tuple[str, str]:
    """One key's line: how it is typed, and its meaning in a sentence with the default."""
    short = next((name for name, meant in grammar.shorts.items() if meant == key.name), None)
    names = f"--{short}, --{key.name}" if short else f"--{key.name}"
    default = grammar.default(key)
    meaning = re.split(r"(?<=\.) ", key.meaning, maxsplit=1)[0].rstrip(".")
    if key.name.endswith("trainer"):
        return f"{names}.NAME VALUE", "Any other field of transformers' TrainingArguments, such as learning_rate"
    return f"{names} {key.takes}", f"{meaning} [{default}]" if default else meaning


def _is_open(key: Key) -> bool:
    """Whether a group is shown as one line: the fields of transformers, and groups that may be left out whole."""
    return key.name.endswith("trainer")


def _title(key: Key) -> str:
    return {"": "Run", "base": "The run (base)"}.get(
        key.group, key.group.removeprefix("base.") + " (" + key.group + ".*)"
    )
