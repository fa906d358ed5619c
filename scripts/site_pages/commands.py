"""The page of all commands: what ``--help`` says."""

from __future__ import annotations

import click
import typer

from stabledllm.cli.main import app

INTRODUCTION = """# Commands

What `stabledllm COMMAND --help` says. `[KEY=VALUE]...` are [keys of the recipe](keys.md). Every command ends with 0
when all is done, else with one sentence; the codes and sentences are explained among the [failures](failures.md).
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
    return [command.help or "", f"```text\n{usage}\n```", table if rows else ""]


def _record(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """The names of a parameter and its help, with the default."""
    return parameter.get_help_record(context)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
