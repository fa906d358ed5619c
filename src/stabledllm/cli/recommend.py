"""The command ``stabledllm recommend``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli import decompose
from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Arguments, Config, DryRun, Quick, Wide, path
from stabledllm.cli.printing import answer, say
from stabledllm.errors import UserError


def recommend(
    words: Arguments = None,
    config: Config = None,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="What decompose wrote, or its folder, instead of measuring now."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Whose noise decides: gradient or loss; the gradient's where it is measured.")
    ] = None,
    dry_run: DryRun = False,
    quick: Quick = False,
    wide: Wide = False,
) -> None:
    """What to train with: measure every method's gradient noise at equal compute, and end with the recipe to paste.

    forwards=32 is the batch in forward passes.
    """
    from stabledllm.experiment.stored_at_once import check_stored, refuse_quantity, stored_in

    typed = read_arguments("recommend", words, config)
    measures = stored is None
    if stored is None:
        also = [partial(refuse_quantity, by)]
        stored = decompose.run(
            typed.tree(say), typed.overrides, "recommend", also, dry_run=dry_run, quick=quick, wide=wide
        )
        if dry_run:
            return
    else:
        for option, given in (("--quick", quick), ("--wide", wide), ("--dry-run", dry_run)):
            if given:
                raise UserError(f"recommend: {option} is for measuring now, which --from does not; leave one out.")
        check_stored(stored, by, [*([typed.recipe] if typed.recipe else []), *typed.overrides])
    from stabledllm.config.run_folder import MEASURED
    from stabledllm.lab.noise_advice import advise
    from stabledllm.lab.recommendation import recommend as choose
    from stabledllm.reports.stored import read_one_of
    from stabledllm.reports.table import filled

    kind, record = read_one_of(stored if measures else stored_in(stored), list(MEASURED))
    choice = choose(record, by) if kind == "decomposition" else advise(record, by)
    if kind == "decomposition" or not measures or by:  # else they stand below the table
        answer("\n" + "\n".join(map(filled, choice.sentences)))
    beside = f" {typed}" if (typed := getattr(choice, "typed", "")) else ""
    answer(f"\n# stabledllm train recipe.yaml{beside}\n{choice.recipe}")
