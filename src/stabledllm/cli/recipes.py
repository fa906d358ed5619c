"""``stabledllm ls``, ``cp`` and ``validate``: recipes are listed, copied and checked, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Overrides, path
from stabledllm.cli.printing import say, say_all
from stabledllm.errors import UserError


def ls() -> None:
    """The recipes that come with the package, and the configurations for ``accelerate launch``."""
    from stabledllm.config import shipped_launches, shipped_recipes

    for name, text in (shipped_recipes() | shipped_launches()).items():
        say(f"{name:24s} {text.splitlines()[0].lstrip('# ')}")


def cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe or launch configuration.")],
    to: Annotated[
        Path | None, typer.Argument(parser=path, help="Where to; the recipe's own name here by default.")
    ] = None,
) -> None:
    """Copy a shipped recipe or launch configuration to edit it."""
    from stabledllm.config import find_recipe, shipped_launches
    from stabledllm.runtime.files import write_text
    from stabledllm.runtime.locks import writing_beside

    text = shipped_launches().get(name.removesuffix(".yaml")) or find_recipe(name)
    copy = to or Path(f"{name.rsplit('/', 1)[-1].removesuffix('.yaml')}.yaml")
    with writing_beside(copy, "cp"):
        if copy.exists():
            raise UserError(f"{copy}: expected a new file, found one that is there already.")
        write_text(copy, text)
    say(str(copy))


def validate(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    load: Annotated[
        bool, typer.Option("--load", help="Open config, tokenizer and data too, and say what is in them; no weights.")
    ] = False,
) -> None:
    """Check a recipe's keys, values, methods, names, files and columns without loading a model."""
    from stabledllm.experiment.at_once import load_checked

    settings = load_checked(recipe, overrides or [])
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.planned import runs_of
    from stabledllm.experiment.validation import validate as check

    description = check(settings)
    say_all(idle_overrides(settings, runs_of(settings), overrides or []))
    if load:
        from stabledllm.experiment.opened import open_all

        say_all(open_all(settings))
    say(f"{recipe}: {description}, in order")
