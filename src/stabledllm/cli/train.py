"""The command ``stabledllm train``."""

from __future__ import annotations

from stabledllm.cli.arguments import read_arguments, recipe_of
from stabledllm.cli.options import Arguments, Config, DryRun
from stabledllm.cli.printing import answer, answer_all, is_quiet, say, say_all, show
from stabledllm.errors import UserError


def train(words: Arguments = None, config: Config = None, dry_run: DryRun = False) -> None:
    """Train one model; run again to continue a killed run. Exit code 3: it diverged, see run.json."""
    from stabledllm.config import ExperimentSettings
    from stabledllm.experiment.at_once import load_checked

    typed = read_arguments("train", words, config)
    recipe = recipe_of(typed)
    told: list[str] = []
    settings = load_checked(recipe, typed.overrides, repeated=True, say=told.append)
    if isinstance(settings, ExperimentSettings):
        raise UserError(
            f"recipe '{recipe}': expected a training recipe, found an experiment; use 'stabledllm experiment'."
        )
    from stabledllm.runtime.showing import busy

    with busy("loading torch and transformers"):
        from stabledllm.experiment.idle import idle_overrides
        from stabledllm.experiment.planned import runs_of
        from stabledllm.experiment.validation import check_run
        from stabledllm.runtime.launched import is_main_process
        from stabledllm.training.run import train as run
        from stabledllm.training.screen import Screen

    (planned,) = runs = runs_of(settings)
    check_run(planned)
    notes = idle_overrides(settings, runs, typed.overrides)
    if is_main_process():
        say_all([*told, *notes])
    if dry_run:
        from stabledllm.cli.dry_run import of_train

        answer_all(of_train(settings))
        return
    record = run(settings, say=say, screen=Screen(show=show))
    if is_quiet() and record:
        from stabledllm.reports.printed import metric_lines

        answer_all(metric_lines(record))
        answer(str(settings.out))
