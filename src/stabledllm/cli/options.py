"""Arguments and options that several commands share; settings are options too, see :mod:`stabledllm.cli.grammar`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.completion import complete_setting, recipes
from stabledllm.cli.grammar import GRAMMARS


def path(text: str | Path) -> Path:
    """The typed path; a leading ``~`` that the shell did not expand (``--out=~/x``) becomes the user's home folder."""
    return Path(text).expanduser()


def _complete_arguments(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What may stand in the place of a recipe or of ``KEY=VALUE``."""
    words = ctx.meta.get("stabledllm.words", [])
    offered = complete_setting(GRAMMARS[ctx.command.name], words, incomplete)
    named = [(name, "recipe") for name in recipes()] if not words and "=" not in incomplete else []
    return [*named, *((one.value, one.help) for one in offered)]


def _complete_recipes(incomplete: str) -> list[str]:
    return [name for name in recipes() if name.startswith(incomplete)]


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A shipped recipe (see 'ls') or a YAML file, then settings of your own.",
        autocompletion=_complete_arguments,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of your own.", autocompletion=_complete_arguments),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="The recipe or YAML file, as in the first place.",
        autocompletion=_complete_recipes,
    ),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check, then say what would be loaded, drawn and written, and the memory; do none of it."
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights from PyTorch's .bin files where there are no safetensors.")
]
Base = Annotated[str | None, typer.Option(help="Of an adapter: its base model, where it is not where it was.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="The same as decoding.KEY=VALUE, or as KEY=VALUE for a key of another group."
    ),
]
Small = Annotated[bool, typer.Option("--small", help="A reduced run of half a minute, for a first try and tests.")]
_OTHER_GROUPS = ("data.", "image_decoding.", "clip=", "decoding.", "objective.", "held_out=", "draws=")

Wide = Annotated[bool, typer.Option("--wide", help="All columns of the tables, not only those that answer.")]
Quick = Annotated[bool, typer.Option("--quick", help="A coarse answer in about a minute, from fewer rows and draws.")]


def full_names(settings: list[str] | None) -> list[str]:
    """The settings of ``--set`` under their keys' full names: those of the decoding are typed without their group.

    Of a key that is given again the last value counts, as of any repeated option.
    """
    full = [one if one.startswith(_OTHER_GROUPS) else f"decoding.{one}" for one in settings or []]
    return list({one.partition("=")[0]: one for one in full}.values())
