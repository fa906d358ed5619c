"""The command ``stabledllm decompose``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Arguments, Config, DryRun, Quick, Wide
from stabledllm.cli.printing import answer_all, say, say_all

if TYPE_CHECKING:
    from stabledllm.config.settings import DecomposeSettings


def decompose(
    words: Arguments = None, config: Config = None, dry_run: DryRun = False, quick: Quick = False, wide: Wide = False
) -> None:
    """Where the training noise comes from, and what each method does to it."""
    typed = read_arguments("decompose", words, config)
    run(typed.tree(say), typed.overrides, dry_run=dry_run, quick=quick, wide=wide)


def run(
    tree: dict,
    overrides: Sequence[str],
    command: str = "decompose",
    also: Sequence[Callable[[], object]] = (),
    *,
    dry_run: bool = False,
    quick: bool = False,
    wide: bool = False,
) -> Path:
    """Measure, print the tables, write the record and the figures, and return the record's file.

    Args:
        command: whose settings they are. also: checks of its own options, told with what is wrong with them.
        dry_run: say what would be done, and do none of it.
        quick: measure fewer rows and draws, where they are not given. wide: print all columns of the tables.
    """
    from stabledllm.experiment.commands_at_once import check_command
    from stabledllm.lab.quick import quick_decompose

    if quick:
        tree = quick_decompose(tree, overrides)
    settings = check_command(command, tree, overrides, also=also, tell=say)
    from stabledllm.experiment.idle import idle_in_decompose

    say_all(idle_in_decompose(settings, overrides))
    out = Path(settings.out)
    if dry_run:
        from stabledllm.cli.dry_run import of_decompose

        answer_all(of_decompose(settings))
        return out  # of which nothing is read
    if settings.objective.kind == "dpo":
        return _of_pairs(settings, out)
    if settings.objective.kind == "grpo":
        return _of_policy(settings, out, wide)
    from stabledllm.lab.decompose import run_decompose
    from stabledllm.reports.printed import decomposition_text
    from stabledllm.reports.save import save_decomposition_figures
    from stabledllm.runtime.locks import writing

    with writing(settings.out, "decompose"):
        record = run_decompose(settings, say, quick=quick)
        answer_all(decomposition_text(record, wide))
        figures = save_decomposition_figures(record, out)
        say(f"wrote {out / 'decomposition.json'} and {', '.join(figure.name for figure in figures)}")
    return out / "decomposition.json"


def _of_pairs(settings: DecomposeSettings, out: Path) -> Path:
    """Measure the noise of preferences and print its table."""
    from stabledllm.lab.preferences import RECORD, run_pair_noise
    from stabledllm.reports.preferences import preference_text
    from stabledllm.runtime.locks import writing

    with writing(settings.out, "decompose"):
        record = run_pair_noise(settings, say)
        answer_all(preference_text(record))
        say(f"wrote {out / RECORD}")
    return out / RECORD


def _of_policy(settings: DecomposeSettings, out: Path, wide: bool) -> Path:
    """Measure the noise of policy gradients and print its table."""
    from stabledllm.lab.policy import RECORD, run_policy_noise
    from stabledllm.reports.policy_noise import policy_text
    from stabledllm.runtime.locks import writing

    with writing(settings.out, "decompose"):
        record = run_policy_noise(settings, say)
        answer_all(policy_text(record, wide))
        say(f"wrote {out / RECORD}")
    return out / RECORD
