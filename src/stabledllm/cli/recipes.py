"""``stabledllm ls``, ``cp`` and ``validate``: recipes are listed, copied and checked, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.arguments import read_arguments, recipe_of
from stabledllm.cli.completion import recipes as recipe_names
from stabledllm.cli.options import Arguments, Config, path
from stabledllm.cli.printing import answer, answer_all, say_all
from stabledllm.errors import UserError


def _names(incomplete: str) -> list[str]:
    """The recipes and launch configurations whose names begin so."""
    from stabledllm.config import shipped_launches

    return [name for name in (*recipe_names(), *shipped_launches()) if name.startswith(incomplete)]


def ls() -> None:
    """The recipes that come with the package, and the configurations for ``accelerate launch``."""
    from stabledllm.config import shipped_launches, shipped_recipes

    for name, text in (shipped_recipes() | shipped_launches()).items():
        answer(f"{name:24s} {text.splitlines()[0].lstrip('# ')}")


def cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe or launch configuration.", autocompletion=_names)],
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
    answer(str(copy))


def validate(
    words: Arguments = None,
    config: Config = None,
    load: Annotated[
        bool, typer.Option("--load", help="Open config, tokenizer and data too, and say what is in them; no weights.")
    ] = False,
) -> None:
    """Check a recipe's keys, values, methods, names, files and columns without loading a model."""
    from stabledllm.experiment.at_once import load_checked

    typed = read_arguments("validate", words, config)
    recipe = recipe_of(typed)
    settings = load_checked(recipe, typed.overrides)
    from stabledllm.experiment.at_once import in_words, runs_in
    from stabledllm.experiment.idle import idle_overrides

    notes = idle_overrides(settings, runs_in(settings), typed.overrides)
    if load:
        from stabledllm.experiment.opened import open_all
        from stabledllm.experiment.validation import validate as check

        check(settings)
        say_all(notes)
        answer_all(open_all(settings))
    else:
        say_all(notes)
    answer(f"{recipe}: {in_words(settings)}, in order")
