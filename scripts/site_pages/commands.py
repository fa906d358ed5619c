"""The page of all commands: what ``--help`` says."""

from __future__ import annotations

import re

import click
import typer

from stabledllm.cli.grammar import GRAMMARS
from stabledllm.cli.main import app

from .keys import ROOTS

INTRODUCTION = """# Commands

What `stabledllm COMMAND --help` says, but for the table of settings, which stand among [all keys](keys.md): each is
written `KEY=VALUE` or `--KEY VALUE`, see [the command line](command_line.md). Every command ends with 0 when all is
done, else with one sentence; the codes and sentences are explained among the [failures](failures.md).
"""


def page() -> str:
    """The Markdown of the page."""
    group = typer.main.get_command(app)
    commands = group.commands.items()
    rows = [f"| [`{name}`](#{name}) | {command.get_short_help_str(200)} |" for name, command in commands]
    parts = [INTRODUCTION, "\n".join(["| command | what it does |", "|---|---|", *rows])]
    for name, command in commands:
        parts += [f"## {name} {{ #{name} }}", *_section(name, command)]
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"stabledllm {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    rows = [record for parameter in command.params if (record := _record(parameter, context))]
    table = "\n".join(["| | |", "|---|---|", *(f"| `{names}` | {_cell(text)} |" for names, text in rows)])
    return [command.help or "", f"```text\n{usage}\n```", table if rows else "", *_settings(name)]


def _settings(name: str) -> list[str]:
    """A sentence on where a command's keys stand, its own defaults of them, and its short names of them."""
    grammar = GRAMMARS.get(name)
    if grammar is None:
        return []
    titles = [ROOTS[kind][0] for kind in grammar.kinds if kind in ROOTS]
    links = " or ".join(f"[{title.lower()}](keys.md#{title.lower().replace(' ', '-')})" for title in titles)
    said = (
        [f"Settings: the keys of {links}."] if links else ["Settings: the keys of `data.image`, without that prefix."]
    )
    if grammar.presets:
        given = ", ".join(f"`{key}={grammar.default(grammar.keys[key])}`" for key in grammar.presets)
        said.append(f"Unless given: {given}.")
    if grammar.shorts:
        short = ", ".join(f"`{one}` for `{key}`" for one, key in grammar.shorts.items())
        said.append(f"Short names: {short}.")
    return [" ".join(said)]


def _record(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """The names of a parameter and its help, with the default."""
    record = parameter.get_help_record(context)
    if record and parameter.param_type_name == "argument":  # behind which some versions of typer name its type
        return re.sub(r" <[^<>]*>$", "", record[0]), record[1]
    return record


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
