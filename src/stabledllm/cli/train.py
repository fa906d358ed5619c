"""The command ``stabledllm train``."""

from __future__ import annotations

from typing import Annotated

import typer

from stabledllm.cli.options import Overrides
from stabledllm.cli.printing import say, say_all
from stabledllm.errors import UserError


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see 'ls') or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Train one model; run again to continue a killed run. Exit code 3: it diverged, see run.json."""
    from stabledllm.config import ExperimentSettings
    from stabledllm.experiment.at_once import load_checked

    told: list[str] = []
    settings = load_checked(recipe, overrides or [], repeated=True, say=told.append)
    if isinstance(settings, ExperimentSettings):
        raise UserError(
            f"recipe '{recipe}': expected a training recipe, found an experiment; use 'stabledllm experiment'."
        )
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.planned import runs_of
    from stabledllm.experiment.validation import check_run
    from stabledllm.runtime.launched import is_main_process
    from stabledllm.training.run import train as run

    (planned,) = runs = runs_of(settings)
    check_run(planned)
    notes = idle_overrides(settings, runs, overrides or [])
    if is_main_process():
        say_all([*told, *notes])
    run(settings, say=say)
