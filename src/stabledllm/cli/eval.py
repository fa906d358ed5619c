"""The command ``stabledllm eval``."""

from __future__ import annotations

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Arguments, Config, DryRun, Set, full_names
from stabledllm.cli.printing import answer, answer_all, is_quiet, say, say_all


def evaluate(words: Arguments = None, config: Config = None, set_: Set = None, dry_run: DryRun = False) -> None:
    """NLL (standard objective, fixed noise) and accuracy of a model on test rows, beside the untuned model's.

    With the folder of a run and no data: the rows that it held out, and so its own final numbers. Run again to
    continue a killed evaluation; on several devices under accelerate launch.
    """
    from stabledllm.experiment.commands_at_once import check_command, in_trained_blocks

    typed = read_arguments("eval", words, config, full_names(set_))
    told: list[str] = []
    settings = in_trained_blocks(check_command("eval", typed.tree(say), typed.overrides, tell=told.append))
    from stabledllm.evaluation.run import evaluate as run
    from stabledllm.experiment.idle import idle_in_eval
    from stabledllm.runtime.launched import is_main_process

    notes = idle_in_eval(settings, typed.overrides)
    if is_main_process():
        say_all([*told, *notes])
    if dry_run:
        from stabledllm.cli.dry_run import of_eval

        answer_all(of_eval(settings))
        return
    record = run(settings, say)
    if is_quiet() and is_main_process():
        from stabledllm.reports.printed import metric_lines

        answer_all(metric_lines(record))
        answer(settings.out)
