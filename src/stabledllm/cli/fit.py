"""The command ``stabledllm fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Arguments, Config, DryRun, Quick
from stabledllm.cli.printing import answer, answer_all, say, say_all


def fit(words: Arguments = None, config: Config = None, dry_run: DryRun = False, quick: Quick = False) -> None:
    """Probe the loss over t and fit p(t) for a method's source, masker and views."""
    typed = read_arguments("fit", words, config)
    run(typed.tree(say), typed.overrides, dry_run=dry_run, quick=quick)


def run(tree: dict, overrides: Sequence[str], *, dry_run: bool = False, quick: bool = False) -> None:
    """Probe, fit, and write ``p_of_t.json`` with its figure."""
    from stabledllm.experiment.commands_at_once import check_command
    from stabledllm.lab.quick import FIT, under

    settings = check_command("fit", under(FIT, tree) if quick else tree, overrides, tell=say)
    from stabledllm.data.images import with_image_defaults
    from stabledllm.experiment.idle import idle_in_fit

    settings = with_image_defaults(settings)
    say_all(idle_in_fit(settings, overrides))
    if dry_run:
        from stabledllm.cli.dry_run import of_fit

        answer_all(of_fit(settings))
        return
    from stabledllm.lab.fit import run_fit
    from stabledllm.reports.save import save_fit_figure
    from stabledllm.runtime.locks import writing

    path = Path(settings.out) / "p_of_t.json"
    with writing(settings.out, "fit"):
        density = run_fit(settings, path, say, quick=quick)
        answer(f"wrote {path} and {save_fit_figure(density.record, path.with_suffix('.png')).name}")
