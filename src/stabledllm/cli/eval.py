"""The command ``stabledllm eval``."""

from __future__ import annotations

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Arguments, Config, DryRun, Set, fitted, full_names
from stabledllm.cli.printing import answer, answer_all, is_quiet, say, say_all


def evaluate(words: Arguments = None, config: Config = None, set_: Set = None, dry_run: DryRun = False) -> None:
    """NLL (standard objective, fixed noise) and accuracy of a model on test rows, beside the untuned model's.

    Run again to continue a killed evaluation; on several devices under accelerate launch.
    """
    from stabledllm.config.recipe import apply_overrides, check
    from stabledllm.config.settings import EvalSettings

    typed = read_arguments("eval", words, config, full_names(set_))
    settings = check(apply_overrides(typed.tree(say), typed.overrides), EvalSettings, "eval")
    from stabledllm.evaluation.run import evaluate as run
    from stabledllm.evaluation.untuned import resolve
    from stabledllm.experiment.idle import idle_in_eval
    from stabledllm.runtime.launched import is_main_process

    decoding = fitted(settings.decoding, settings.base or resolve(settings.model))
    settings = settings.model_copy(update={"decoding": decoding})
    notes = idle_in_eval(settings, typed.overrides)
    if is_main_process():
        say_all(notes)
    if dry_run:
        from stabledllm.cli.dry_run import of_eval

        answer_all(of_eval(settings))
        return
    record = run(settings, say)
    if is_quiet() and is_main_process():
        from stabledllm.reports.printed import metric_lines

        answer_all(metric_lines(record))
        answer(settings.out)
