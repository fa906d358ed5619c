"""The command ``stabledllm experiment``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.arguments import read_arguments, recipe_of
from stabledllm.cli.options import Arguments, Config, DryRun, Wide
from stabledllm.cli.printing import answer_all, say, say_all
from stabledllm.errors import UserError


def experiment(
    words: Arguments = None,
    config: Config = None,
    jobs: Annotated[
        str,
        typer.Option(help="Runs at the same time; auto: one a GPU, or one a CPU thread where memory allows it."),
    ] = "auto",
    devices: Annotated[str | None, typer.Option(help="Accelerators for the jobs, such as 0,1,2,3.")] = None,
    wait: Annotated[bool, typer.Option(help="In the end for runs that other processes are at.")] = True,
    dry_run: DryRun = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A rehearsal in about a minute: 20 steps, two seeds, few rows; into OUT-quick."),
    ] = False,
    wide: Wide = False,
) -> None:
    """Methods x seeds; run again, or on several machines at once, to continue: no run is repeated or done twice.

    How long it takes is said as soon as the first steps show it. With --quick it is another, small experiment, whose
    results advise nothing.
    """
    typed = read_arguments("experiment", words, config)
    recipe = recipe_of(typed, own_rows=False)
    run(recipe, typed.overrides, jobs, devices, wait, dry_run=dry_run, quick=quick, wide=wide)


def run(
    recipe: str,
    overrides: Sequence[str],
    jobs: str = "auto",
    devices: str | None = None,
    wait: bool = True,
    *,
    dry_run: bool = False,
    quick: bool = False,
    wide: bool = False,
) -> None:
    """Check every run, do them all, print the tables, and write ``results.json``."""
    from stabledllm.config import TrainSettings
    from stabledllm.experiment.at_once import check_devices, check_jobs, load_checked

    also = [partial(check_jobs, jobs), partial(check_devices, devices)]
    settings = load_checked(recipe, overrides, also=also, say=say)
    if isinstance(settings, TrainSettings):
        raise UserError(
            f"recipe '{recipe}': expected an experiment with 'methods', found a training recipe; use 'train', or write "
            f"a YAML of 'base: {{extends: {recipe}}}' and 'methods: [...]'."
        )
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.planned import runs_of
    from stabledllm.experiment.quick import note_on, quickened
    from stabledllm.experiment.run import run_experiment
    from stabledllm.experiment.side_by_side import side_by_side
    from stabledllm.experiment.validation import check_run
    from stabledllm.reports.printed import experiment_text
    from stabledllm.runtime.failures import working_on
    from stabledllm.training.arguments import training_arguments

    if quick:
        settings = quickened(settings, [override.partition("=")[0] for override in overrides])
    runs = runs_of(settings)
    for planned in runs:
        check_run(planned)
        training_arguments(planned.settings)
    say_all(idle_overrides(settings, runs, overrides))
    numbers = check_devices(devices)
    beside = side_by_side([run.settings for run in runs], len(runs) * len(settings.seeds), jobs, numbers)
    if dry_run:
        from stabledllm.cli.dry_run import of_experiment

        answer_all(of_experiment(settings, runs, beside))
        return
    if beside.jobs > 1:
        say(beside.sentence())
    with working_on(settings.out):
        coarse = note_on(settings) if quick else None
        results = run_experiment(settings, say, beside.jobs, devices=beside.devices, wait=wait, coarse=coarse)
    answer_all(experiment_text(results, wide))
    say(f"wrote {Path(settings.out) / 'results.json'}")
